"""The same settings have the same directory, other settings another."""

from pathlib import Path

from deepseek_mini.compose import compose
from deepseek_mini.run_dir import LONGEST, run_directory
from own_configs import own_configs, write_experiment


def directory(*overrides: str) -> str:
    return run_directory(compose(overrides)).as_posix()


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
        "data.tokenizer='a b'",
        "data.tokenizer=a_b",
    ]
    assert len({directory(*([line] if line else [])) for line in lines}) == len(lines)


def test_settings_that_change_nothing_computed_do_not_count() -> None:
    quiet = ["logger=wandb", "logger.wandb.project=x", "resume=never", "check=true"]
    assert directory(*quiet) == "runs/tiny"
    assert directory("seed=7", *quiet) == directory("seed=7")


def test_runs_of_an_experiment_lie_together() -> None:
    assert directory("experiment=smoke") == "runs/smoke/tiny"
    assert directory("experiment=smoke", "seed=1").startswith("runs/smoke/tiny-seed_1-")


def test_model_chosen_by_an_experiment_names_the_run(tmp_path: Path) -> None:
    own = own_configs(tmp_path)
    write_experiment(own, "folder/mix", "defaults:\n  - override /model: mine\n")
    composed = compose(["experiment=folder/mix"], own)
    assert run_directory(composed) == Path("runs/folder/mix/mine")


def test_names_are_short_and_safe() -> None:
    long = 'data.path=\'/a path/(with) $trange * "things"' + "/and/more" * 20 + "/**/*.txt'"
    name = directory("data=text_files", long, "seed=1").removeprefix("runs/")
    assert len(name) <= LONGEST
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


def test_run_dir_sets_the_directory() -> None:
    assert directory("run_dir=/some/where", "seed=3") == "/some/where"
