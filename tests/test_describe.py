import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]


def describe(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / "scripts" / "describe.py", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80"},
    )


def describe_json(*arguments: str) -> dict[str, Any]:
    done = describe(*arguments, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def test_json_of_v3_has_exactly_the_agreed_keys_and_numbers() -> None:
    description = describe_json("v3_671b")
    assert list(description) == [
        "total_params",
        "active_params",
        "mtp_params",
        "params",
        "flops_per_token",
        "kv_cache_bytes_per_token",
    ]
    assert description["total_params"] == sum(description["params"].values()) == 671_026_419_200
    assert description["active_params"] == 37_552_297_472
    assert description["mtp_params"] == 11_610_068_224
    assert description["flops_per_token"] == {
        "causal": pytest.approx(249.81e9, abs=5e6),
        "noncausal": pytest.approx(280.51e9, abs=5e6),
        "causal_with_mtp": pytest.approx(259.99e9, abs=5e6),
        "noncausal_with_mtp": pytest.approx(291.20e9, abs=5e6),
        "causal_with_gate": pytest.approx(250.45e9, abs=5e6),
        "six_n": 6 * 37_552_297_472,
    }
    assert description["kv_cache_bytes_per_token"] == {
        "mla": 70_272,  # (512 + 64) x 61 layers x 2 bytes
        "mha": 3_997_696,  # 2 x 128 heads x 128 x 61 x 2
        "gqa8": 249_856,
        "mqa": 31_232,
    }


@pytest.mark.parametrize(("model", "total"), [("v2_236b", 235_741_434_880), ("v2_lite_16b", 15_706_484_224)])
def test_shipped_v2_models_have_the_released_counts(model: str, total: int) -> None:
    description = describe_json(model)
    assert description["total_params"] == total
    assert description["mtp_params"] == 0


def test_flops_are_at_the_sequence_length_that_is_given() -> None:
    at_4096, at_512 = describe_json("tiny"), describe_json("tiny", "data.sequence_length=512")
    capped = describe_json("tiny", "model.max_seq_len=512")
    assert at_512["flops_per_token"] == capped["flops_per_token"]
    assert at_512["flops_per_token"]["causal"] < at_4096["flops_per_token"]["causal"]
    assert at_512["flops_per_token"]["six_n"] == at_4096["flops_per_token"]["six_n"]


def test_overrides_change_the_model_that_is_described() -> None:
    without = describe_json("tiny", "model.mtp.depth=0", "model.attention=mha")
    assert without["mtp_params"] == 0
    assert without["flops_per_token"]["causal"] == without["flops_per_token"]["causal_with_mtp"]
    assert without["params"]["attention"] == 4 * 256 * 256 * 6


def test_table_names_the_length_and_fits_80_columns() -> None:
    done = describe("v3_671b")
    assert done.returncode == 0
    assert "at 4096 tokens" in done.stdout
    assert "671,026,419,200" in done.stdout
    assert "249.811" in done.stdout
    cache = [
        line.split() for line in done.stdout.splitlines() if line.split()[:1] in (["mha"], ["gqa8"], ["mqa"])
    ]
    assert cache == [["mha", "3,997,696", "56.9x"], ["gqa8", "249,856", "3.56x"], ["mqa", "31,232", "0.444x"]]
    assert max(map(len, done.stdout.splitlines())) <= 80


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["tinny"], "did you mean model=tiny?"),
        (["tiny", "model.dmi=3"], "did you mean model.dim?"),
        (["tiny", "model.n_heads=0"], "model.n_heads=0 must be at least 1"),
    ],
)
def test_a_wrong_name_exits_2_with_the_nearest_one_and_no_traceback(
    arguments: list[str], answer: str
) -> None:
    done = describe(*arguments)
    assert done.returncode == 2
    assert answer in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
