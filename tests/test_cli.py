"""The command line: what it refuses and how, what it hands over, help."""

import re
import resource
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from deepseek_mini.cli import main
from deepseek_mini.compose import group_options, load_config
from deepseek_mini.config import Config
from own_configs import own_configs, write_experiment

GROUPS = group_options()
ROOT = Path(__file__).resolve().parent.parent

MISTAKES = [
    # command line, what the message must contain
    ("model.dmi=3", ["model.dmi", "did you mean model.dim?", "keys of model: vocab_size, dim,"]),
    ("lr=1e-3", ["no key 'lr'", "did you mean optimizer.lr or schedule.lr?"]),
    ("optim.lr=1e-3", ["optim.lr", "did you mean optimizer.lr"]),
    ("model.lr=1e-3", ["model.lr", "did you mean optimizer.lr"]),
    ("optimzer.lr=1e-3", ["optimzer.lr", "did you mean optimizer.lr?"]),
    ("modle.dim=3", ["modle.dim", "did you mean model.dim?"]),
    ("modle=tiny", ["modle", "did you mean model?", "groups: data, experiment,"]),
    ("optimzer=muon", ["optimzer", "did you mean optimizer?"]),
    ("Optimizer.LR=1", ["Optimizer.LR", "did you mean optimizer.lr"]),
    ("moe.balance=none", ["moe.balance", "did you mean model.moe.balance?"]),
    ("model.batch_size=3", ["model.batch_size", "did you mean data.batch_size"]),
    ("foo=1", ["foo", "groups: data, experiment,", "seed, scale, device, run_dir, resume, check"]),
    ("hydra.run.dir=x", ["hydra.run.dir", "no key"]),
    ("+model.new=3", ["+model.new=3", "not added (+)", "no key 'model.new'", "keys of model:"]),
    ("++model.dmi=3", ["++model.dmi=3", "not added (+)", "did you mean model.dim?"]),
    ("+model.dim=3", ["+model.dim=3", "write model.dim=3"]),
    ("+experiment=smoke", ["+experiment=smoke", "write experiment=smoke"]),
    ("~model.dim", ["~model.dim", "deleted (~)", "write model.dim=VALUE"]),
    ("~optimizer", ["~optimizer", "deleted (~)"]),
    ("model", ["missing '='", "model=VALUE"]),
    ("tiny", ["missing '='", "write model=tiny"]),
    ("foo", ["no key 'foo'", "groups: data, experiment,"]),
    ("optimzer", ["no key 'optimzer'", "did you mean optimizer?"]),
    ("model.moe", ["model.moe is a section", "balance, bias_update_rate"]),
    ("=3", ["no key ''"]),
    ("model=tinny", ["model=tinny", "small, tiny, v2_236b", "did you mean model=tiny?"]),
    ("model=", ["model takes one of bench_29m, small,"]),
    ("model=null", ["model takes one of bench_29m, small,"]),
    ("model=[tiny,small]", ["model takes one of bench_29m, small,"]),
    ("model={dim: 3}", ["model takes one of bench_29m, small,"]),
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
    ("trainer.max_steps=1000000000000", ["1,000,000,000,000 steps", "lower trainer.max_steps"]),
    (
        "model=tiny trainer.max_steps=null trainer.max_tokens=14_800_000_000_000",
        ["lower trainer.max_tokens=14800000000000 or raise data.batch_size"],
    ),
    ("schedule.lr=[{until: 0.5}]", ["schedule.lr", "0.5"]),
    ("data.path=x.txt", ["data.path='x.txt'", "needs data=text_files"]),
    ("run_dir=", ["run_dir is empty"]),
    ("seed=99999999999999999999", ["seed=99999999999999999999", "between 0 and 4294967295"]),
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


def test_settings_reach_the_run_as_dataclasses(started: list[tuple[Config, Path, list[str]]]) -> None:
    path = "data.path='~/a, b.txt'"
    overrides = ["model=small", "optimizer.lr=1e-4", "model.moe.balance=none", "data=text_files", path]
    assert main(overrides) == 0
    ((config, run_dir, words),) = started
    assert isinstance(config, Config)
    assert (config.model.dim, config.optimizer.lr, config.model.moe.balance.value) == (512, 1e-4, "none")
    assert config.data.path == "~/a, b.txt"
    assert run_dir.parts[0] == "runs"
    assert words == overrides


def test_config_dir_adds_options(
    tmp_path: Path, started: list[tuple[Config, Path, list[str]]], capsys: pytest.CaptureFixture[str]
) -> None:
    own = own_configs(tmp_path)
    assert main(["--config-dir", str(own), "model=mine"]) == 0
    assert main([f"--config-dir={own}", "model=mine"]) == 0
    assert [config.model.dim for config, *_ in started] == [128, 128]
    assert main(["--config-dir", str(own), "--help"]) == 0
    assert "mine" in capsys.readouterr().out


def test_experiment_with_a_sweep_asks_for_m(
    tmp_path: Path, started: list[object], capsys: pytest.CaptureFixture[str]
) -> None:
    own = own_configs(tmp_path)
    write_experiment(own, "rates", "hydra:\n  sweeper:\n    params:\n      optimizer.lr: 1e-3,2e-3\n")
    assert main(["--config-dir", str(own), "experiment=rates"]) == 2
    assert "sweeps over optimizer.lr; add -m" in capsys.readouterr().err
    assert not started
    assert main(["--config-dir", str(own), "experiment=rates", "optimizer.lr=1e-3"]) == 0


def test_help_fits_one_screen_and_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert len(text.splitlines()) <= 36
    assert max(map(len, text.splitlines())) <= 100
    for group, options in GROUPS.items():
        assert group in text
        for option in options:
            assert option in text
    assert "tiny*" in text
    assert main(["-h"]) == 0


def test_help_stars_what_is_taken_by_default_also_where_the_model_chooses(
    capsys: pytest.CaptureFixture[str],
) -> None:
    main(["--help"])
    starred = re.findall(r"([\w-]+)\*", capsys.readouterr().out)
    assert {"tiny", "python", "v3", "none"} < set(starred)
    assert set(starred) & set(GROUPS["optimizer"]) == {load_config([]).optimizer.name}


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
    """Seconds of processor time, which other work on the machine changes little."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, str(ROOT / "train.py"), "--help"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0
