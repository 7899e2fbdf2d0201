"""TensorBoard gets the curves, or a message that names what to install."""

import sys
from pathlib import Path

import pytest

from deepseek_mini.config import TensorboardConfig
from deepseek_mini.tracking.tensorboard import TensorboardTracker


def test_scalars_and_text_can_be_read_back(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    commands: dict[str, str] = {}
    tracker = TensorboardTracker(TensorboardConfig(), tmp_path, commands)
    tracker.log({"train/loss": 3.5, "perf/mfu": None}, 10)
    tracker.log({"train/loss": 3.4, "perf/mfu": None}, 20)
    tracker.samples([{"prompt": "a", "text": "b"}], 20)
    tracker.event("spike", "loss 9.1", 20)
    tracker.close({})
    folder = tmp_path / "tensorboard"
    read = EventAccumulator(str(folder)).Reload()
    assert [(e.step, e.value) for e in read.Scalars("train/loss")] == [
        (10, pytest.approx(3.5)),
        (20, pytest.approx(3.4)),
    ]
    assert read.Tags()["scalars"] == ["train/loss"]
    assert len(read.Tags()["tensors"]) == 2
    assert commands == {"curves": f"tensorboard --logdir {folder}"}


def test_a_missing_package_is_named_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match=r"logger=tensorboard .* pip install -e '\.\[tensorboard\]'"):
        TensorboardTracker(TensorboardConfig(), tmp_path, {})
