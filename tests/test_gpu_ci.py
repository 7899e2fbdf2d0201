"""The GPU job's logic, with an interpreter that only notes what it is asked, and once in earnest on a CPU."""

import importlib
import json
import math
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
JOB, SETUP = ROOT / "scripts" / "gpu_ci.sh", ROOT / "scripts" / "gpu_setup.sh"
FAKE_PYTHON = """#!/usr/bin/env bash
echo "$*" >>"$FAKE_CALLS"
if [[ $* == *"gpu_checks.py backends" ]]; then printf 'te\ntriton\nemulated\n'; fi
for argument; do
    run=${argument#run_dir=}
    [[ $run == "$argument" ]] || { mkdir -p "$run" && echo '{}' >"$run/summary.json"; }
done
[[ -z ${FAKE_FAILURE:-} || $* != *$FAKE_FAILURE* ]] || { echo "no such thing"; exit 3; }
"""


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module("gpu_checks")


def run_job(tmp_path: Path, *words: str, failure: str = "") -> tuple[subprocess.CompletedProcess, list[str]]:
    """The job with the fake interpreter, and what that was called with."""
    python, calls = tmp_path / "python", tmp_path / "calls"
    python.write_text(FAKE_PYTHON)
    python.chmod(0o755)
    fake = {"PYTHON": str(python), "FAKE_CALLS": str(calls), "FAKE_FAILURE": failure}
    done = subprocess.run([JOB, *words], capture_output=True, text=True, env=os.environ | fake, cwd=tmp_path)
    return done, calls.read_text().splitlines() if calls.exists() else []


def test_on_a_gpu_every_backend_trains_and_every_part_runs(tmp_path: Path) -> None:
    done, calls = run_job(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 of 18 parts failed" in done.stdout
    for model in ("tiny", "small"):
        trained = [call for call in calls if call.startswith("train.py") and f" model={model} " in call]
        ways = [re.findall(r"precision\S*=(\S+)", call) for call in trained]
        assert ways == [["bf16"], ["fp8", "te"], ["fp8", "triton"], ["fp8", "emulated"]]
        settings = {re.sub(r"(run_dir|precision\S*)=\S+", "", call).strip() for call in trained}
        assert len(settings) == 1
        (compared,) = (call for call in calls if "gpu_checks.py losses" in call and f"{model}_bf16" in call)
        assert re.findall(rf"{model}_(\w+)", compared) == ["bf16", "fp8_te", "fp8_triton", "fp8_emulated"]
    assert any("environment --need-hopper" in call for call in calls)
    assert any("benchmark.py kernels --json" in call for call in calls)
    assert any("benchmark.py layers --shape v3_671b" in call for call in calls)
    assert any("benchmark.py training" in call for call in calls)
    results = tmp_path / "gpu_ci_out" / "results"
    assert {"kernels.json", "tiny_fp8_te.summary.json", "summary.txt"} <= {p.name for p in results.iterdir()}


def test_a_part_that_fails_fails_the_job_after_all_others_have_run(tmp_path: Path) -> None:
    (tmp_path / "right").mkdir()
    done, calls = run_job(tmp_path, "out", failure="precision.backend=triton")
    assert done.returncode == 1
    assert re.search(r"train_tiny_fp8_triton +FAILED \(3\)", done.stdout)
    assert re.search(r"bench_training +passed", done.stdout)
    assert "no such thing" in done.stdout
    results = tmp_path / "out" / "results"
    assert "2 of 18 parts failed" in (results / "summary.txt").read_text()
    assert (results / "tiny_fp8_triton.summary.json").exists()
    assert len(calls) == len(run_job(tmp_path / "right", "out")[1])


def test_without_a_gpu_kernels_are_not_timed_and_a_line_says_so(tmp_path: Path) -> None:
    done, calls = run_job(tmp_path, "--cpu", "out")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search("bench_kernels +left out: kernels are timed on a Hopper GPU", done.stdout)
    assert not any("kernels --json" in call or "--need-hopper" in call for call in calls)
    assert all("device=cpu" in call for call in calls if call.startswith("train.py"))


def test_a_folder_that_has_something_in_it_is_refused(tmp_path: Path) -> None:
    done, calls = run_job(tmp_path, str(ROOT / "docs"))
    assert (done.returncode, calls) == (2, [])
    assert "is not empty; give a new folder" in done.stderr
    assert run_job(tmp_path, "--gpu")[0].returncode == 2


def test_the_interpreter_is_found_from_where_the_job_is_started_or_asked_for(tmp_path: Path) -> None:
    run_job(tmp_path, "absolute")
    for name, code, message in (("./python", 0, "0 of 18 parts failed"), ("./none", 2, "PYTHON names one")):
        environment = os.environ | {"PYTHON": name, "FAKE_CALLS": str(tmp_path / "calls")}
        words = [JOB, name[2:] + "_out"]
        done = subprocess.run(words, capture_output=True, text=True, env=environment, cwd=tmp_path)
        assert done.returncode == code
        assert message in done.stdout + done.stderr
    assert not (tmp_path / "none_out").exists()


def write_run(path: Path, losses: list[float]) -> Path:
    path.mkdir(parents=True)
    rows = [{"step": i, "train/loss": loss} for i, loss in enumerate(losses, start=1)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_late_losses_are_smoothed_and_averaged_over_the_last_quarter(checks, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [4.0, 3.0, 2.0, 1.0, 5.0, 5.0, 5.0, 6.0])
    smoothed = [4.0]
    for loss in (3.0, 2.0, 1.0, 5.0, 5.0, 5.0, 6.0):
        smoothed.append(0.9 * smoothed[-1] + 0.1 * loss)
    assert checks.late_loss(run) == pytest.approx((smoothed[-1] + smoothed[-2]) / 2)


@pytest.mark.parametrize(("factor", "code"), [(1.009, 0), (0.991, 0), (1.011, 1), (0.989, 1), (math.nan, 1)])
def test_losses_that_are_out_of_bounds_fail(checks, tmp_path: Path, capsys, factor: float, code: int) -> None:
    losses = [3.0, 2.9, 2.8, 2.7]
    reference = write_run(tmp_path / "bf16", losses)
    others = write_run(tmp_path / "same", losses), write_run(tmp_path / "fp8", [factor * x for x in losses])
    assert checks.main(["losses", str(reference), *map(str, others), "--within", "0.01"]) == code
    assert ("FAILS" in capsys.readouterr().out) == bool(code)


def test_a_run_that_is_missing_or_shorter_is_named(checks, tmp_path: Path, capsys) -> None:
    reference = write_run(tmp_path / "bf16", [3.0] * 4)
    assert checks.main(["losses", str(tmp_path / "none"), str(reference)]) == 2
    assert "none: 0 training losses on record; there must be 4" in capsys.readouterr().err
    shorter = write_run(tmp_path / "shorter", [3.0] * 3)
    assert checks.main(["losses", str(reference), str(shorter)]) == 2
    assert f"shorter: 3 training losses, and {reference} has 4" in capsys.readouterr().err


def test_the_environment_says_what_runs_and_why_not(checks, capsys, monkeypatch) -> None:
    monkeypatch.setattr(checks, "choose_device", lambda device: (checks.torch.device("cpu"), ""))
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert checks.main(["environment", "--need-hopper"]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("error: no CUDA device: this is ")
    report = json.loads(captured.out)
    assert report["fp8"]["emulated"] == "runs"
    assert "CUDA" in report["fp8"]["te"]
    assert report["packages"]["torch"] == checks.torch.__version__
    assert checks.main(["backends"]) == 0
    assert capsys.readouterr().out == "emulated\n"


def test_the_machine_gets_the_transformer_engine_that_the_adapter_is_checked_against(tmp_path: Path) -> None:
    done = subprocess.run([SETUP, "--dry-run", tmp_path], capture_output=True, text=True, check=True)
    (pinned,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["te"]
    build = next(line for line in done.stdout.splitlines() if pinned in line)
    for need in (
        "--no-build-isolation",
        "NVTE_PYTORCH_FORCE_BUILD=TRUE",
        "CUDA_HOME=",
        f"{tmp_path}/lib/python",
    ):
        assert need in build
    without = subprocess.run([SETUP, "--dry-run", "--no-te"], capture_output=True, text=True, check=True)
    assert "transformer-engine" not in without.stdout


def test_a_missing_compiler_is_told_before_gigabytes_are_downloaded(tmp_path: Path) -> None:
    environment = os.environ | {"CUDA_HOME": str(tmp_path), "PYTHON": "false"}
    done = subprocess.run([SETUP, tmp_path / "venv"], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: no nvcc in {tmp_path}; set CUDA_HOME")


def test_the_workflow_starts_the_job_and_keeps_what_it_writes() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "gpu.yml").read_text())
    steps = workflow["jobs"]["hopper"]["steps"]
    assert steps[1]["run"].split()[0] == "scripts/gpu_ci.sh"
    assert os.access(JOB, os.X_OK)
    assert steps[2]["if"] == "always()"
    assert "gpu_ci_out/results" in steps[2]["with"]["path"]


@pytest.mark.slow
def test_the_job_runs_in_earnest_on_a_cpu(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([JOB, "--cpu", tmp_path / "out"], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    results = tmp_path / "out" / "results"
    assert "holds" in (results / "losses_tiny.txt").read_text()
    assert json.loads((results / "training.json").read_text())["results"]
    assert json.loads((results / "tiny_fp8_emulated.summary.json").read_text())["exit_reason"]
