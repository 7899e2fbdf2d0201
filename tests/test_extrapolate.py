"""scripts/extrapolate.py: from a real run's ledger to the full run, and errors that name what is wrong."""

import json
import re
import runpy
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from deepseek_mini.compose import load_config
from deepseek_mini.cost.layer_profile import REFERENCE
from deepseek_mini.cost.meter import device_seconds, read_ledger
from deepseek_mini.training.trainer import run
from small_run import SMALL, write_corpus

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "extrapolate.py"
MAIN = runpy.run_path(str(SCRIPT))["main"]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("extrapolate")
    corpus = write_corpus(folder / "corpus")
    paths = [f"data.path='{corpus}/*.txt'", f"data.cache_dir='{folder / 'cache'}'"]
    run(load_config([*SMALL, *paths]), folder / "run", [])
    return folder / "run"


@pytest.fixture(scope="module")
def v3(run_dir: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, SCRIPT, run_dir, "--json", "--no-report"], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def as_json(capsys: pytest.CaptureFixture[str], run_dir: Path, *arguments: str) -> dict[str, Any]:
    assert MAIN([str(run_dir), "--json", "--no-report", *arguments]) == 0
    return json.loads(capsys.readouterr().out)


def error(capsys: pytest.CaptureFixture[str], arguments: Sequence[str]) -> str:
    assert MAIN(list(arguments)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    return captured.err


def test_json_has_the_agreed_keys(v3: dict[str, Any]) -> None:
    assert set(v3["tiers"]) == {"prior", "published_throughput", "layer_profile"}
    for tier in v3["tiers"].values():
        assert {"gpu_hours", "gpu_hours_per_trillion_tokens", "dollars"} <= set(tier)
        assert set(tier["gpu_hours"]) == set(tier["dollars"]) == {"p10", "p50", "p90"}
        assert tier["gpu_hours"]["p10"] < tier["gpu_hours"]["p50"] < tier["gpu_hours"]["p90"]
        assert tier["gpu_hours_per_trillion_tokens"] == pytest.approx(tier["gpu_hours"]["p50"] / 14.8)
    assert {"gpu_hours", "dollars", "days"} <= set(v3["steady_state"])
    assert {"gpu_hours", "dollars", "days", "lines"} <= set(v3["metered"])


def test_steady_state_and_metered_hours_are_apart(v3: dict[str, Any]) -> None:
    steady, metered = v3["steady_state"]["gpu_hours"], v3["metered"]["gpu_hours"]
    lines = v3["metered"]["lines"]
    assert steady == lines["pre-training at the steady rate"] == v3["tiers"]["layer_profile"]["gpu_hours"]
    assert steady["p50"] < metered["p50"]
    assert v3["published"]["pre-training at the steady rate"] == 2_664_000


def test_each_tiers_miss_of_v3_is_as_stated(v3: dict[str, Any]) -> None:
    """All DeepSeek rows held out: docs/results/extrapolation.md."""
    misses = {name: tier["gpu_hours"]["p50"] / 2.664e6 - 1 for name, tier in v3["tiers"].items()}
    assert misses["prior"] == pytest.approx(0.78, abs=0.01)
    assert misses["published_throughput"] == pytest.approx(0.22, abs=0.02)
    assert misses["layer_profile"] == pytest.approx(-0.053, abs=0.01)
    assert "none of DeepSeek's" in v3["evidence"]["prior"]
    assert "DGX-H100" in v3["evidence"]["published_throughput"]
    assert "reference profile" in v3["evidence"]["layer_profile"]


def test_every_hour_of_the_ledger_is_in_one_line(v3: dict[str, Any], run_dir: Path) -> None:
    rows = read_ledger(run_dir / "ledger.jsonl")
    this = v3["this_run"]
    assert sum(line["device_hours"] for line in this["lines"]) == pytest.approx(device_seconds(rows) / 3600)
    assert this["device_hours"] == pytest.approx(device_seconds(rows) / 3600)
    assert sum(line["tokens"] for line in this["lines"]) == sum(row["tokens"] for row in rows)
    assert this["steps"] == 12
    summary = json.loads((run_dir / "summary.json").read_text())
    assert this["device_hours"] == pytest.approx(summary["device_hours"], rel=0.01)
    assert this["tokens_per_second"] == pytest.approx(summary["steady_tokens_per_second"])


def test_a_cpus_mfu_carried_over_is_labelled_as_no_evidence(v3: dict[str, Any]) -> None:
    assert v3["mfu_carried_over"]["label"].startswith("not evidence: measured on a CPU")
    mfu = v3["this_run"]["mfu"]
    hours = 259.99e9 * 14.8e12 / (mfu * 989.4e12) / 3600
    assert v3["mfu_carried_over"]["gpu_hours"] == pytest.approx(hours, rel=1e-3)
    assert "carried" not in json.dumps(v3["tiers"])


def test_the_mfu_of_an_fp8_run_is_a_share_of_the_fp8_peak(
    v3: dict[str, Any], run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(run_dir, tmp_path / "fp8")
    environment = json.loads((copy / "environment.json").read_text())
    words = {"precision": "fp8 by triton, fp32 factors; the rest bf16"}
    (copy / "environment.json").write_text(json.dumps(environment | words))
    hours = as_json(capsys, copy)["mfu_carried_over"]["gpu_hours"]
    assert hours == pytest.approx(v3["mfu_carried_over"]["gpu_hours"] * 989.4 / 1978.9, rel=1e-3)


def test_the_extrapolation_takes_less_than_ten_seconds_of_processor_time(run_dir: Path) -> None:
    begin = time.process_time()
    assert MAIN([str(run_dir), "--json"]) == 0
    assert time.process_time() - begin < 10


def test_the_report_is_one_self_contained_page(run_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    assert MAIN([str(run_dir), "--report", str(path), "--staff", "1e6"]) == 0
    page = path.read_text()
    assert page.count("data:image/png;base64,") == 2
    assert "http" not in page.replace("https://", "http").split("<body>")[0]
    for words in (
        "published by its makers", "2.664M", "19.926", "staff", "not evidence", "Popular claims",
        "MLA compresses to a 64-dimensional latent", "metered: all of the ledger", "of the FP8 peak",
    ):  # fmt: skip
        assert words in page, words


def test_the_screen_fits_80_columns(run_dir: Path) -> None:
    done = subprocess.run(
        [sys.executable, SCRIPT, run_dir, "--no-report"],
        capture_output=True,
        text=True,
        check=True,
        env={"COLUMNS": "80"},
    )
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "not evidence" in done.stdout
    words = " ".join(done.stdout.split())
    assert "170.4K per trillion tokens, 163.8K to 203.2K; reference profile" in words


def test_tokens_price_and_cluster_scale_what_they_should(
    v3: dict[str, Any], run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    half = as_json(capsys, run_dir, "--tokens", "7.4e12", "--price", "4")
    ours, theirs = half["tiers"]["layer_profile"], v3["tiers"]["layer_profile"]
    assert ours["gpu_hours"]["p50"] == pytest.approx(theirs["gpu_hours"]["p50"] / 2)
    assert ours["dollars"]["p50"] == pytest.approx(4 * ours["gpu_hours"]["p50"])
    alone = as_json(capsys, run_dir, "--pretraining-only")
    assert set(alone["metered"]["lines"]) == {
        "pre-training at the steady rate", "batch ramp", "restarts, waiting, checkpoints",
    }  # fmt: skip
    assert alone["claims"] == []


def test_a_gpu_without_a_profile_has_no_layer_tier(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = as_json(capsys, run_dir, "--cluster", "gb300_256", "--price", "6")
    assert result["tiers"]["layer_profile"] is None
    assert "benchmark.py layers" in result["evidence"]["layer_profile"]
    assert result["tiers"]["published_throughput"]["gpu_hours_per_trillion_tokens"] == pytest.approx(
        45.5e3, rel=0.05
    )
    assert result["steady_state"]["gpu_hours"] == result["tiers"]["published_throughput"]["gpu_hours"]


def test_failed_runs_cost_what_the_run_costs(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A share of 1 is the metered line again, at the same prices."""
    metered = as_json(capsys, run_dir, "--failed-runs", "1", "--research", "3")["metered"]
    assert metered["dollar_lines"]["failed runs"] == metered["dollars"]["p50"]
    assert metered["dollar_lines"]["research"] == 3 * metered["dollars"]["p50"]


def test_a_plan_that_exceeds_the_gpus_memory_says_so(
    v3: dict[str, Any], run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """V3 with EP8: each rank of DualPipe holds 2 x 32 of a layer's experts, 8 times as many as with EP64."""
    assert "DOES NOT FIT" not in v3["evidence"]["layer_profile"]
    crowded = as_json(capsys, run_dir, "--ep", "8")
    assert "DOES NOT FIT: a rank needs about" in crowded["evidence"]["layer_profile"]


def test_the_arithmetic_of_the_profile_is_told(v3: dict[str, Any]) -> None:
    """V2 was trained in BF16: hours scaled from an FP8 trace must not hide that."""
    assert "FP8 matrix products, BF16 attention" in v3["evidence"]["layer_profile"]


def own_profile(tmp_path: Path, device: str, label: str) -> Path:
    """A file as `scripts/benchmark.py layers` writes them, with the trace's figures."""
    content = {"name": f"v3_671b on {device}", "kind": "measured", "label": label, "device": device}
    path = tmp_path / "layers.json"
    path.write_text(json.dumps(json.loads(REFERENCE.read_text()) | content))
    return path


def test_a_profile_taken_on_a_cpu_is_no_evidence_for_a_gpu(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profile = own_profile(tmp_path, "AMD EPYC", "measured on a CPU: no evidence for a GPU")
    result = as_json(capsys, run_dir, "--profile", str(profile))
    assert result["tiers"]["layer_profile"] is None
    assert "no evidence for a GPU; AMD EPYC is none of the GPUs" in result["evidence"]["layer_profile"]
    assert result["steady_state"]["gpu_hours"] == result["tiers"]["published_throughput"]["gpu_hours"]


def test_a_profile_taken_on_a_gpu_like_the_clusters_is_told_by_its_label(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profile = own_profile(tmp_path, "NVIDIA H100 80GB HBM3", "measured on an H100, BF16")
    result = as_json(capsys, run_dir, "--profile", str(profile))
    assert result["evidence"]["layer_profile"].startswith("measured on an H100, BF16; dualpipe")
    assert result["tiers"]["layer_profile"]["gpu_hours"]["p50"] > 0


def test_another_target_says_what_it_has_nothing_for(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = as_json(capsys, run_dir, "--target", "v2_236b")
    assert result["tiers"]["published_throughput"] is None
    assert "scaled by FLOPs, not measured" in result["evidence"]["layer_profile"]
    assert result["tiers"]["prior"]["gpu_hours"]["p50"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cluster", "b900_2048"], "unknown device"),
        (["--cluster", "h800_2000"], "does not divide"),
        (["--price", "-2"], "--price"),
        (["--price", "inf"], "--price"),
        (["--staff", "-1"], "--staff"),
        (["--research", "nan"], "--research"),
        (["--tokens", "0"], "--tokens"),
        (["--tokens", "inf"], "--tokens"),
        (["--batch", "0"], "--batch"),
        (["--target", "v3_617b"], "v3_671b"),
        (["--profile", "nowhere.json"], "nowhere.json"),
        (["--batch", "2048"], "micro-batches, got 16; change --batch, --pp or --schedule"),
        (["--schedule", "interleaved"], "60 micro-batches do not divide by 8 ranks; change --batch"),
    ],
)
def test_bad_input_is_named(
    arguments: list[str], message: str, run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in error(capsys, [str(run_dir), "--no-report", *arguments])


def test_a_directory_that_is_no_run_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert str(tmp_path) in error(capsys, [str(tmp_path)])


def test_a_run_without_steady_steps_is_refused(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("config.yaml", "ledger.jsonl"):
        (tmp_path / name).write_bytes((run_dir / name).read_bytes())
    first = (run_dir / "metrics.jsonl").read_text().splitlines()[0]
    (tmp_path / "metrics.jsonl").write_text(first + "\n")
    message = error(capsys, [str(tmp_path)])
    assert "1 logged steps, a steady rate needs 3" in message
    assert "trainer.log_every" in message
    (tmp_path / "ledger.jsonl").unlink()
    assert "ledger.jsonl: no such file" in error(capsys, [str(tmp_path)])


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("ledger.jsonl", '"seconds"', '"second"', "line 1: seconds is None"),
        ("ledger.jsonl", '"seconds": ', '"seconds": -', "line 1: seconds is -"),
        ("ledger.jsonl", '"phase"', '"part"', "line 1: no phase"),
        ("ledger.jsonl", '"tokens": ', '"tokens": 0', "no step is in it"),
        (
            "metrics.jsonl",
            '"perf/tokens_per_second": ',
            '"perf/tokens_per_second": -',
            "tokens_per_second is -",
        ),
        ("metrics.jsonl", '"perf/mfu": ', '"perf/mfu": NaN, "was": ', "perf/mfu is nan"),
    ],
)
def test_a_damaged_figure_of_the_run_is_named(
    name: str,
    old: str,
    new: str,
    message: str,
    run_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    copy = shutil.copytree(run_dir, tmp_path / "run")
    text = (copy / name).read_text()
    assert old in text
    replaced = re.sub(rf"{old}\d+", '"tokens": 0', text) if new == '"tokens": 0' else text.replace(old, new)
    (copy / name).write_text(replaced)
    told = error(capsys, [str(copy), "--no-report"])
    assert message in told
    assert name in told
