"""scripts/reproduce_claims.py: every claim with its source, and what runs say where there are some."""

import json
import re
from pathlib import Path

import pytest

from analysis.synthetic import write_experts, write_run
from test_compare import load_script, write_ladder

script = load_script("reproduce_claims")


def write_study(folder: Path, *variants: str, **figures: float | None) -> Path:
    for i, variant in enumerate(variants):
        for seed in range(2):
            loss = 3.0 + 0.01 * i + seed / 1000
            run = write_run(folder / f"{i}-{seed}", variant, seed=seed, loss=loss, **figures)
            if "groups" in variant:
                write_experts(run)
    return folder


def test_without_runs_all_is_computed_and_nothing_measured(tmp_path, capsys):
    assert script.main(["--out", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out/claims.md").read_text()
    assert "| V3 takes 120 to 150 GFLOP per token | **corrected** | 250 at 4,096 tokens" in page
    assert "249.81 G" in page
    assert page.count("not measured: no such runs were given") == 5
    assert "7 confirmed" in page
    assert (tmp_path / "out/claims.png").read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out == f"{tmp_path / 'out/claims.md'}, claims.png\n"


def test_runs_stand_beside_the_claims_that_they_are_evidence_on(tmp_path, capsys):
    studies = [
        write_study(tmp_path / "attention", "model.attention=mla", "model.attention=mha"),
        write_study(
            tmp_path / "mtp", "model.mtp.depth=0", "model.mtp.depth=1", **{"val/mtp_acceptance": 0.5}
        ),
        write_study(tmp_path / "balance", "model.moe.balance=bias", "model.moe.balance=none"),
        write_study(tmp_path / "groups", "model.n_limited_groups=2", "model.n_limited_groups=4"),
    ]
    assert script.main([*map(str, studies), "--out", str(tmp_path / "out")]) == 0
    page = " ".join((tmp_path / "out/claims.md").read_text().split())
    assert "cache, bytes per token in BF16: attention=mla 96, attention=mha 128" in page
    assert "depth=1: 50% of the drafts of each depth kept behind held-out text, up to 1.50 tokens" in page
    assert "MaxVio over the validation set: balance=bias 0.25, balance=none 0.25" in page
    assert "groups per token: n_limited_groups=2 1.50, n_limited_groups=4 1.50" in page
    assert "if choices were uniform: n_limited_groups=2 1.67, n_limited_groups=4 1.86" in page
    assert page.count("not measured: no such") == 1  # FP8
    assert "16 runs" in page
    assert re.search(r"against balance=bias: (higher|lower|no difference)", page)


def test_json_is_one_object_with_every_claim(capsys):
    assert script.main(["--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["claims"]) == 27
    assert {claim["verdict"] for claim in found["claims"]} == {"confirmed", "corrected", "not supported"}
    assert all(claim["published"] for claim in found["claims"])
    assert set(found["measured"]) == {claim["topic"] for claim in found["claims"]} | {"others"}


def test_ladders_and_ablations_that_no_claim_is_about_have_their_verdicts(tmp_path, capsys):
    study = write_study(tmp_path / "shared", "model.n_shared_experts=1", "model.n_shared_experts=0")
    assert script.main([str(study), "--out", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out/claims.md").read_text()
    assert "## Other ablations\n\n- n_shared_experts=0 against n_shared_experts=1: " in page
    capsys.readouterr()
    ladder = write_ladder(tmp_path / "ladder", seeds=2)
    assert script.main([str(ladder[0].parent), "--json"]) == 0
    lines = json.loads(capsys.readouterr().out)["measured"]["cache"]
    compared = [line.partition(":")[0] for line in lines if " against " in line]
    assert [line for line in compared if "scale=2" in line and line.count("scale=2") != 2] == []
    assert len(compared) == 3
    assert any("by the trend over sizes" in line for line in lines)


@pytest.mark.parametrize("fault", ["nowhere", "unwritable"])
def test_bad_input_exits_2_with_one_line(tmp_path, capsys, fault):
    (tmp_path / "file").write_text("")
    words = [str(tmp_path / "nowhere")] if fault == "nowhere" else ["--out", str(tmp_path / "file/out")]
    assert script.main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
