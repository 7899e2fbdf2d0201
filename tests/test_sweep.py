"""Sweeps: which runs they stand for, and what becomes of the others when one fails or is stopped."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deepseek_mini.cli import main
from deepseek_mini.compose import ConfigError, compose
from deepseek_mini.run_dir import run_directory
from deepseek_mini.sweep import Job, plan, run_jobs
from own_configs import own_configs, write_experiment

ROOT = Path(__file__).resolve().parent.parent


def test_sweep_is_the_product_of_its_values() -> None:
    jobs = plan(["model.attention=mla,gqa", "seed=range(0,2)", "optimizer.lr=1e-2"])
    assert [job.overrides for job in jobs] == [
        ["model.attention=mla", "seed=0", "optimizer.lr=1e-2"],
        ["model.attention=mla", "seed=1", "optimizer.lr=1e-2"],
        ["model.attention=gqa", "seed=0", "optimizer.lr=1e-2"],
        ["model.attention=gqa", "seed=1", "optimizer.lr=1e-2"],
    ]
    assert [job.label for job in jobs][-1] == "model.attention=gqa seed=1"
    assert len({job.run_dir for job in jobs}) == 4
    assert jobs[0].run_dir == run_directory(compose(jobs[0].overrides))


def test_sweep_over_groups_takes_lists_and_globs() -> None:
    assert [job.overrides for job in plan(["schedule=glob(v2*)"])] == [["schedule=v2"], ["schedule=v2_lite"]]
    jobs = plan(["seed=1,2", "logger=[wandb,tensorboard]"])
    assert [job.overrides[1] for job in jobs] == ["logger=[wandb,tensorboard]"] * 2


def test_experiment_brings_its_own_sweep(tmp_path: Path) -> None:
    own = own_configs(tmp_path)
    body = "hydra:\n  sweeper:\n    params:\n      optimizer.lr: 1e-3,2e-3\n      data.batch_size: 4\n"
    write_experiment(own, "rates", body)
    jobs = plan(["experiment=rates", "seed=1,2"], own)
    assert [job.overrides[1:] for job in jobs] == [
        ["seed=1", "optimizer.lr=0.001", "data.batch_size=4"],
        ["seed=1", "optimizer.lr=0.002", "data.batch_size=4"],
        ["seed=2", "optimizer.lr=0.001", "data.batch_size=4"],
        ["seed=2", "optimizer.lr=0.002", "data.batch_size=4"],
    ]
    assert [job.overrides[1:] for job in plan(["experiment=rates", "optimizer.lr=5e-3"], own)] == [
        ["optimizer.lr=5e-3", "data.batch_size=4"]
    ]


def test_one_bad_run_stops_a_sweep_before_it_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("deepseek_mini.cli.run_jobs", lambda *_, **__: pytest.fail("a run was started"))
    assert main(["-m", "model.n_routed_experts=32,64,33", "seed=1"]) == 2
    error = capsys.readouterr().err
    assert "run 3 of 3 (model.n_routed_experts=33)" in error
    assert "model.n_expert_groups=4" in error
    assert main(["-m", "model.dmi=1,2"]) == 2
    assert "did you mean model.dim?" in capsys.readouterr().err


def test_runs_of_a_sweep_must_not_share_a_directory() -> None:
    with pytest.raises(ConfigError, match=r"share /some/where: seed=1 and seed=2"):
        plan(["seed=1,2", "run_dir=/some/where"])


CHILD = """
import signal, sys, time
signal.signal(signal.SIGTERM, signal.default_int_handler)
try:
    with open("started.txt", "a") as file:
        file.write(sys.argv[1] + " ")
    time.sleep(30 if sys.argv[1] == "slow" else 0)
except KeyboardInterrupt:
    time.sleep(0.5)
    open("saved.txt", "w").close()
    sys.exit(130)
sys.exit(int(sys.argv[1]))
"""


def jobs_named(*names: str) -> list[Job]:
    return [Job([name], f"code={name}", Path("runs", name)) for name in names]


def test_failing_run_does_not_stop_the_sweep_and_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    assert run_jobs(jobs_named("0", "3", "0", "2"), [sys.executable, "-c", CHILD], said.append) == 1
    assert Path("started.txt").read_text().split() == ["0", "3", "0", "2"]
    assert said[1] == "[2/4] code=3 -> runs/3"
    assert said[-1].splitlines() == [
        "2 of 4 runs failed:",
        "  code=3 -> runs/3 (exit code 3)",
        "  code=2 -> runs/2 (exit code 2)",
    ]
    assert run_jobs(jobs_named("0", "0"), [sys.executable, "-c", CHILD], said.append) == 0


def test_interrupted_run_ends_the_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    assert run_jobs(jobs_named("0", "130", "0"), [sys.executable, "-c", CHILD], said.append) == 130
    assert Path("started.txt").read_text().split() == ["0", "130"]
    assert "stopped at run 2 of 3" in said[-1]


def slow_sweep(folder: Path) -> subprocess.Popen[bytes]:
    """A sweep of a slow run and another, in a process group of its own, once the first has begun."""
    code = (
        "import sys; from pathlib import Path; from deepseek_mini.sweep import Job, run_jobs; "
        "jobs = [Job([name], name, Path(name)) for name in ('slow', '0')]; "
        f"sys.exit(run_jobs(jobs, [sys.executable, '-c', {CHILD!r}], print))"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    sweep = subprocess.Popen(command, cwd=folder, env=environment, process_group=0, stdout=subprocess.DEVNULL)
    while not (folder / "started.txt").exists():
        time.sleep(0.02)
    return sweep


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_a_sweep_after_the_running_child_has_saved(signal_number: int, tmp_path: Path) -> None:
    """Ctrl-C reaches the whole process group, SIGTERM the sweep alone."""
    sweep = slow_sweep(tmp_path)
    if signal_number == signal.SIGINT:
        os.killpg(sweep.pid, signal_number)
    else:
        sweep.send_signal(signal_number)
    assert sweep.wait(timeout=20) == 130
    assert (tmp_path / "saved.txt").exists()
    assert (tmp_path / "started.txt").read_text().split() == ["slow"]


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_a_run_does_not_outlive_a_sweep_that_is_killed(tmp_path: Path) -> None:
    sweep = slow_sweep(tmp_path)
    sweep.kill()
    sweep.wait()
    end = time.monotonic() + 10
    while not (tmp_path / "saved.txt").exists() and time.monotonic() < end:
        time.sleep(0.02)
    assert (tmp_path / "saved.txt").exists()


def test_sweep_starts_one_process_per_run(tmp_path: Path) -> None:
    """The parent checks and waits: it imports no torch."""
    code = (
        "import sys; import deepseek_mini.sweep as sweep; from deepseek_mini.cli import main; "
        "sweep._run_child = lambda command: (print(command[1:]), (0, False))[1]; "
        "code = main(['--multirun', 'seed=1,2']); print('torch' in sys.modules); sys.exit(code)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "['-P', '-m', 'deepseek_mini.cli', 'seed=1']" in result.stdout
    assert "['-P', '-m', 'deepseek_mini.cli', 'seed=2']" in result.stdout
    assert result.stdout.splitlines()[-1] == "False"
