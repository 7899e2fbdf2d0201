"""The command line: what it refuses and how, where runs are kept, sweeps, help."""

import os
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from deepseek_mini.cli import main
from deepseek_mini.compose import ConfigError, compose, group_options, load_config
from deepseek_mini.config import Config
from deepseek_mini.run_dir import LONGEST, run_directory
from deepseek_mini.sweep import Job, plan, run_jobs

ROOT = Path(__file__).resolve().parent.parent

MISTAKES = [
    # command line, what the message must contain
    ("model.dmi=3", ["model.dmi", "did you mean model.dim?", "keys of model: vocab_size, dim,"]),
    ("lr=1e-3", ["no key 'lr'", "did you mean optimizer.lr or schedule.lr?"]),
    ("optim.lr=1e-3", ["optim.lr", "did you mean optimizer.lr"]),
    ("model.lr=1e-3", ["model.lr", "did you mean optimizer.lr"]),
    ("modle.dim=3", ["modle.dim", "did you mean model.dim?"]),
    ("modle=tiny", ["modle", "did you mean model?", "groups: data, experiment,"]),
    ("optimzer=muon", ["optimzer", "did you mean optimizer?"]),
    ("Optimizer.LR=1", ["Optimizer.LR", "did you mean optimizer.lr"]),
    ("moe.balance=none", ["moe.balance", "did you mean model.moe.balance?"]),
    ("model.batch_size=3", ["model.batch_size", "did you mean data.batch_size"]),
    ("foo=1", ["foo", "groups: data, experiment,", "seed, device, run_dir, resume, check"]),
    ("hydra.run.dir=x", ["hydra.run.dir", "no key"]),
    ("+model.new=3", ["+model.new=3", "not added (+)", "no key 'model.new'", "keys of model:"]),
    ("++model.dmi=3", ["++model.dmi=3", "not added (+)", "did you mean model.dim?"]),
    ("+model.dim=3", ["+model.dim=3", "write model.dim=3"]),
    ("+experiment=smoke", ["+experiment=smoke", "write experiment=smoke"]),
    ("~model.dim", ["~model.dim", "deleted (~)", "write model.dim=VALUE"]),
    ("~optimizer", ["~optimizer", "deleted (~)"]),
    ("model", ["missing '='", "model=VALUE"]),
    ("tiny", ["missing '='", "write model=tiny"]),
    ("=3", ["no key ''"]),
    ("model=tinny", ["model=tinny", "small, tiny, v2_236b", "did you mean model=tiny?"]),
    ("model=", ["model takes one of small, tiny,"]),
    ("model=null", ["model takes one of small, tiny,"]),
    ("model=[tiny,small]", ["model takes one of small, tiny,"]),
    ("model={dim: 3}", ["model takes one of small, tiny,"]),
    ("logger=[wandb,tensorbord]", ["none, tensorboard, wandb", "did you mean logger=tensorboard?"]),
    ("experiment=nope", ["experiment=nope", "smoke"]),
    ("model.dim=1.5", ["model.dim=1.5", "a whole number"]),
    ("model.dim=null", ["model.dim=null", "a whole number"]),
    ("seed=true", ["seed=true", "a whole number"]),
    ("seed=", ["seed=", "a whole number"]),
    ("trainer.max_steps=1e3", ["a whole number, or null", "write trainer.max_steps=1000"]),
    ("optimizer.lr=abc", ["optimizer.lr=abc", "takes a number"]),
    ("check=maybe", ["check=maybe", "true or false"]),
    ("model.attention=mlaa", ["one of mla, mha, gqa, mqa", "did you mean mla?"]),
    ("device=gpu", ["device=gpu", "one of auto, cuda, cpu, mps"]),
    ("schedule.lr=[{until: 1, valu: 2}]", ["schedule.lr", "a list of {until, value, shape, start}"]),
    ("schedule.lr.0.value=3", ["schedule.lr.0.value", "did you mean schedule.lr?"]),
    ("model.moe={balance: none}", ["model.moe is a section", "balance, bias_update_rate"]),
    ("logger.wandb.project=x", ["logger.wandb is off", "add logger=wandb"]),
    ("optimizer.lr=${foo}", ["optimizer.lr", "foo"]),
    ("optimizer.lr=1e-3,2e-3", ["optimizer.lr=1e-3,2e-3", "Add -m"]),
    ("seed=range(1,4)", ["seed=range(1,4)", "Add -m"]),
    ("data.path=~/x", ["data.path=~/x", "'data.path=\"~/x\"'"]),
    ("data.path=a=b", ["data.path=a=b", "'data.path=\"a=b\"'"]),
    ("seed=1 seed=2", ["seed is given 2 times"]),
    ("model=tiny model=small", ["model is given 2 times"]),
    ("data.sequence_length=9999", ["data.sequence_length=9999", "model.max_seq_len=4096"]),
    ("model.n_routed_experts=33", ["model.n_routed_experts=33", "model.n_expert_groups=4"]),
    ("trainer.max_tokens=1000", ["trainer.max_steps", "trainer.max_tokens", "exactly one"]),
    ("schedule.lr=[{until: 0.5}]", ["schedule.lr", "0.5"]),
    ("--model=tiny", ["--model=tiny", "write model=tiny"]),
    ("--multirn", ["--multirn", "did you mean --multirun?"]),
    ("-x", ["-x", "options are --help"]),
    ("--config-dir", ["--config-dir", "which folder"]),
    ("--config-dir /nowhere/at/all", ["/nowhere/at/all", "no such folder"]),
    ("-m seed=interval(0,1)", ["seed=interval(0,1)", "range"]),
    ("-m model=glob(x*)", ["model=glob(x*)", "no value"]),
]


def words_of(line: str) -> list[str]:
    """A command line's words; spaces within brackets do not part them."""
    return [line] if "{" in line else line.split()


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Config, Path, list[str]]]:
    """Stands in for the trainer: the runs that were handed over to it."""
    runs: list[tuple[Config, Path, list[str]]] = []

    def run(config: Config, run_dir: Path, overrides: list[str]) -> int:
        runs.append((config, run_dir, overrides))
        return 0

    set_trainer(monkeypatch, run)
    return runs


def set_trainer(monkeypatch: pytest.MonkeyPatch, run: Callable[..., int]) -> None:
    trainer = types.ModuleType("deepseek_mini.training.trainer")
    vars(trainer)["run"] = run
    monkeypatch.setitem(sys.modules, trainer.__name__, trainer)


def directory(*overrides: str) -> str:
    return run_directory(compose(overrides)).as_posix()


# ---- what is refused


@pytest.mark.parametrize(("line", "parts"), MISTAKES, ids=[line for line, _ in MISTAKES])
def test_mistake_is_explained_on_one_screen_and_nothing_starts(
    line: str, parts: list[str], started: list[object], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words_of(line)) == 2
    output = capsys.readouterr()
    assert not output.out
    assert output.err.startswith("error: ")
    assert len(output.err.splitlines()) <= 24
    assert max(map(len, output.err.splitlines())) <= 200
    assert "Traceback" not in output.err
    for part in parts:
        assert part in output.err
    assert not started


def test_process_exits_with_2_before_torch_is_imported() -> None:
    code = (
        "import sys; from deepseek_mini.cli import main; code = main(['model.dmi=3']); "
        "print([name for name in ('torch', 'numpy', 'wandb') if name in sys.modules]); sys.exit(code)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2
    assert "did you mean model.dim?" in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout.strip() == "[]"


def test_train_py_passes_the_exit_code_on(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "train.py"), "optimizer.lr=abc"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 2
    assert "optimizer.lr takes a number" in result.stderr


def test_value_error_of_a_run_is_shown_like_a_config_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*_: object) -> int:
        raise ValueError("data.path=x: no file matches")

    set_trainer(monkeypatch, run)
    assert main([]) == 2
    assert "error: data.path=x: no file matches" in capsys.readouterr().err
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    assert main([]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_other_exceptions_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: object) -> int:
        raise RuntimeError("out of memory")

    set_trainer(monkeypatch, run)
    with pytest.raises(RuntimeError, match="out of memory"):
        main([])


def test_ctrl_c_exits_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: object) -> int:
        raise KeyboardInterrupt

    set_trainer(monkeypatch, run)
    assert main([]) == 130


def test_exit_code_is_that_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    set_trainer(monkeypatch, lambda *_: 1)
    assert main([]) == 1


def test_several_ranks_are_refused(
    monkeypatch: pytest.MonkeyPatch, started: list[object], capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert main([]) == 2
    assert "WORLD_SIZE=8" in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert main(["-m", "seed=1,2"]) == 2
    assert "torchrun" in capsys.readouterr().err
    assert not started
    assert main([]) == 0


# ---- what is handed over


def test_settings_reach_the_run_as_dataclasses(started: list[tuple[Config, Path, list[str]]]) -> None:
    overrides = ["model=small", "optimizer.lr=1e-4", "model.moe.balance=none", "data.path='~/a, b.txt'"]
    assert main(overrides) == 0
    ((config, run_dir, words),) = started
    assert isinstance(config, Config)
    assert (config.model.dim, config.optimizer.lr, config.model.moe.balance.value) == (512, 1e-4, "none")
    assert config.data.path == "~/a, b.txt"
    assert run_dir.parts[0] == "runs"
    assert words == overrides


def test_tiny_is_the_default_model() -> None:
    assert load_config([]) == load_config(["model=tiny"])


@pytest.mark.parametrize(
    ("choice", "trackers"),
    [("none", ()), ("wandb", ("wandb",)), ("[wandb,tensorboard]", ("wandb", "tensorboard"))],
)
def test_logger_takes_one_option_or_a_list(choice: str, trackers: tuple[str, ...]) -> None:
    logger = load_config([f"logger={choice}"]).logger
    assert tuple(name for name in ("wandb", "tensorboard") if getattr(logger, name) is not None) == trackers


def test_values_of_a_tracker_can_be_set_where_it_is_on() -> None:
    logger = load_config(["logger=[wandb,tensorboard]", "logger.wandb.project=mine"]).logger
    assert logger.wandb is not None
    assert logger.wandb.project == "mine"


def test_own_schedule_wins_over_that_of_the_model() -> None:
    assert load_config(["model=v2_236b"]).schedule.lr[0].until == 0.6
    assert load_config(["model=v2_236b", "schedule=cosine"]).schedule.lr[0].until == 1.0


# ---- files of the user's own


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder for --config-dir, whose name needs quotes."""
    folder = tmp_path / "my 'own' configs"
    write(folder / "model/mine.yaml", "# A model without a recipe.\ndim: 128\n")
    return folder


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def write_experiment(own: Path, name: str, body: str) -> None:
    write(own / f"experiment/{name}.yaml", f"# @package _global_\n# What is asked?\n{body}")


def test_config_dir_adds_options(
    own: Path, started: list[tuple[Config, Path, list[str]]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--config-dir", str(own), "model=mine"]) == 0
    assert main([f"--config-dir={own}", "model=mine"]) == 0
    assert [config.model.dim for config, *_ in started] == [128, 128]
    assert main(["--config-dir", str(own), "--help"]) == 0
    assert "mine" in capsys.readouterr().out


def test_experiment_chooses_groups_and_values_and_the_command_line_wins(own: Path) -> None:
    groups = "defaults:\n  - override /model: small\n  - override /schedule: wsd\n"
    write_experiment(own, "mix", groups + "optimizer:\n  lr: 7.0e-3\nseed: 5\n")
    config = load_config(["experiment=mix", "seed=6"], own)
    assert (config.model.dim, config.optimizer.lr, config.seed) == (512, 7e-3, 6)
    assert config.schedule.lr[0].until == 0.8
    assert config.data.batch_size == load_config(["model=small"]).data.batch_size
    assert load_config(["experiment=mix", "model=tiny"], own).model.dim == 256


@pytest.mark.parametrize(
    ("body", "parts"),
    [
        ("model:\n  dmi: 3\n", ["dmi", "did you mean model.dim?"]),
        ("optimzer:\n  lr: 1\n", ["optimzer", "did you mean optimizer?"]),
        ("optimizer:\n  lr: abc\n", ["abc", "optimizer.lr takes a number"]),
        ("defaults:\n  - override /model: tinny\n", ["model/tinny", "tiny"]),
        ("model:\n  n_routed_experts: 33\n", ["model.n_routed_experts=33"]),
        ("model: [1\n", ["bad.yaml", "line 3"]),
    ],
)
def test_mistake_in_a_file_is_explained(
    body: str, parts: list[str], own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_experiment(own, "bad", body)
    assert main(["--config-dir", str(own), "experiment=bad"]) == 2
    error = capsys.readouterr().err
    for part in parts:
        assert part in error
    assert "Traceback" not in error
    assert "search path" not in error


def test_experiment_without_its_header_is_told_so(own: Path) -> None:
    write(own / "experiment/bare.yaml", "# What is asked?\nseed: 3\n")
    with pytest.raises(ConfigError, match="@package _global_"):
        load_config(["experiment=bare"], own)


def test_own_file_cannot_hide_behind_a_shipped_one(own: Path) -> None:
    write(own / "model/tiny.yaml", "# Mine.\ndim: 128\n")
    with pytest.raises(ConfigError, match=r"model/tiny.yaml has the name of a shipped file"):
        load_config(["model=tiny"], own)


# ---- where a run is kept


def test_run_without_changes_is_named_after_its_model() -> None:
    assert directory() == directory("model=tiny") == "runs/tiny"
    assert directory("model=small") == "runs/small"


def test_same_settings_have_the_same_directory_in_any_order_and_notation() -> None:
    first = directory("optimizer.lr=1e-3", "seed=7", "optimizer=muon", "model=tiny")
    assert first == directory("optimizer=muon", "seed=7", "optimizer.lr=0.001")
    assert first.startswith("runs/tiny-optimizer_muon-lr_0.001-seed_7-")


def test_different_settings_have_different_directories() -> None:
    lines = [
        "",
        "seed=7",
        "seed=8",
        "device=cpu",
        "optimizer.lr=7",
        "schedule=wsd",
        "data.path='a b'",
        "data.path=a_b",
    ]
    assert len({directory(*([line] if line else [])) for line in lines}) == len(lines)


def test_settings_that_change_nothing_computed_do_not_count() -> None:
    quiet = ["logger=wandb", "logger.wandb.project=x", "resume=never", "check=true"]
    assert directory(*quiet) == "runs/tiny"
    assert directory("seed=7", *quiet) == directory("seed=7")


def test_runs_of_an_experiment_lie_together() -> None:
    assert directory("experiment=smoke") == "runs/smoke/tiny"
    assert directory("experiment=smoke", "seed=1").startswith("runs/smoke/tiny-seed_1-")


def test_model_chosen_by_an_experiment_names_the_run(own: Path) -> None:
    write_experiment(own, "folder/mix", "defaults:\n  - override /model: mine\n")
    composed = compose(["experiment=folder/mix"], own)
    assert run_directory(composed) == Path("runs/folder/mix/mine")


def test_names_are_short_and_safe() -> None:
    long = 'data.path=\'/a path/(with) $trange * "things"' + "/and/more" * 20 + "/**/*.txt'"
    name = directory(long, "seed=1").removeprefix("runs/")
    assert len(name) <= LONGEST
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


def test_run_dir_sets_the_directory() -> None:
    assert directory("run_dir=/some/where", "seed=3") == "/some/where"


# ---- sweeps


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
    models = group_options()["model"]
    assert [job.overrides[0] for job in plan(["model=glob(*)"])] == [f"model={name}" for name in models]


def test_experiment_brings_its_own_sweep(own: Path) -> None:
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


def test_experiment_with_a_sweep_asks_for_m(
    own: Path, started: list[object], capsys: pytest.CaptureFixture[str]
) -> None:
    write_experiment(own, "rates", "hydra:\n  sweeper:\n    params:\n      optimizer.lr: 1e-3,2e-3\n")
    assert main(["--config-dir", str(own), "experiment=rates"]) == 2
    assert "sweeps over optimizer.lr; add -m" in capsys.readouterr().err
    assert not started
    assert main(["--config-dir", str(own), "experiment=rates", "optimizer.lr=1e-3"]) == 0


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
import sys, time
with open("started.txt", "a") as file:
    file.write(sys.argv[1] + " ")
if sys.argv[1] == "slow":
    try:
        time.sleep(30)
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


def test_ctrl_c_lets_the_running_child_save(tmp_path: Path) -> None:
    """The terminal signals the whole group; the sweep waits for the child, however long it takes to save."""
    code = (
        "import sys; from pathlib import Path; from deepseek_mini.sweep import Job, run_jobs; "
        "jobs = [Job([name], name, Path(name)) for name in ('slow', '0')]; "
        f"sys.exit(run_jobs(jobs, [sys.executable, '-c', {CHILD!r}], print))"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    sweep = subprocess.Popen(
        command, cwd=tmp_path, env=environment, process_group=0, stdout=subprocess.DEVNULL
    )
    while not (tmp_path / "started.txt").exists():
        time.sleep(0.02)
    time.sleep(0.1)
    os.killpg(sweep.pid, 2)
    assert sweep.wait(timeout=20) == 130
    assert (tmp_path / "saved.txt").exists()
    assert (tmp_path / "started.txt").read_text().split() == ["slow"]


def test_sweep_starts_one_process_per_run(tmp_path: Path) -> None:
    """With check=true nothing is trained; the parent must not import torch."""
    code = (
        "import sys; import deepseek_mini.sweep as sweep; from deepseek_mini.cli import main; "
        "sweep._run_child = lambda command: (print(command[1:]), (0, False))[1]; "
        "code = main(['--multirun', 'seed=1,2']); print('torch' in sys.modules); sys.exit(code)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "['-m', 'deepseek_mini.cli', 'seed=1']" in result.stdout
    assert "['-m', 'deepseek_mini.cli', 'seed=2']" in result.stdout
    assert result.stdout.splitlines()[-1] == "False"


# ---- help


def test_help_fits_one_screen_and_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert len(text.splitlines()) <= 36
    assert max(map(len, text.splitlines())) <= 100
    for group, options in group_options().items():
        assert group in text
        for option in options:
            assert option in text
    assert "tiny*" in text
    assert main(["-h"]) == 0


def test_examples_of_the_help_are_valid(
    started: list[object], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    swept: list[int] = []
    monkeypatch.setattr("deepseek_mini.cli.run_jobs", lambda jobs, *_, **__: swept.append(len(jobs)) or 0)
    main(["--help"])
    text = capsys.readouterr().out
    examples = [
        line.strip() for line in text.splitlines() if line.startswith("  python train.py") and "[" not in line
    ]
    assert len(examples) == 6
    for example in examples:
        words = example.removeprefix("python train.py").split("   ")[0].split()
        assert main([word.strip("'") for word in words]) == 0, example
    assert len(started) == 5
    assert swept == [3]


def test_help_answers_within_a_second(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "train.py"), "--help"]
    best = min(_seconds(command, tmp_path) for _ in range(3))
    assert best < 1.0


def _seconds(command: list[str], cwd: Path) -> float:
    start = time.perf_counter()
    subprocess.run(command, cwd=cwd, check=True, capture_output=True)
    return time.perf_counter() - start
