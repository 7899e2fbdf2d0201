"""Groups, experiments and files of the user's own, and what is wrong with them."""

from pathlib import Path

import pytest

from deepseek_mini.cli import main
from deepseek_mini.compose import ConfigError, load_config
from own_configs import own_configs, write, write_experiment


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


def test_experiment_chooses_groups_and_values_and_the_command_line_wins(tmp_path: Path) -> None:
    own = own_configs(tmp_path)
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
    body: str, parts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = own_configs(tmp_path)
    write_experiment(own, "bad", body)
    assert main(["--config-dir", str(own), "experiment=bad"]) == 2
    error = capsys.readouterr().err
    for part in parts:
        assert part in error
    assert "Traceback" not in error
    assert "search path" not in error


def test_experiment_without_its_header_is_told_so(tmp_path: Path) -> None:
    own = own_configs(tmp_path)
    write(own / "experiment/bare.yaml", "# What is asked?\nseed: 3\n")
    with pytest.raises(ConfigError, match="@package _global_"):
        load_config(["experiment=bare"], own)


def test_own_file_cannot_hide_behind_a_shipped_one(tmp_path: Path) -> None:
    own = own_configs(tmp_path)
    write(own / "model/tiny.yaml", "# Mine.\ndim: 128\n")
    with pytest.raises(ConfigError, match=r"model/tiny.yaml has the name of a shipped file"):
        load_config(["model=tiny"], own)
