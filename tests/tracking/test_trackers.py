"""All trackers as one."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from deepseek_mini.config import Config, LoggerConfig, TensorboardConfig, WandbConfig
from deepseek_mini.tracking import Header, Tracker, Trackers, build_trackers, check_trackers


class Recorder:
    """Notes its calls in a shared list; fails at those named."""

    def __init__(self, name: str, calls: list[str], fails: tuple[str, ...] = ()) -> None:
        self.name, self.calls, self.fails = name, calls, fails

    def _note(self, what: str) -> None:
        self.calls.append(f"{self.name}.{what}")
        if what in self.fails:
            raise RuntimeError("boom")

    def log(self, metrics: dict[str, Any], step: int) -> None:
        self._note("log")

    def samples(self, rows: list[dict[str, Any]], step: int) -> None:
        self._note("samples")

    def event(self, kind: str, message: str, step: int) -> None:
        self._note("event")

    def close(self, summary: dict[str, Any]) -> None:
        self._note("close")


def test_an_optional_tracker_that_fails_is_left_out_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[str] = []
    optional: dict[str, Tracker] = {
        "bad": Recorder("bad", calls, ("log",)),
        "good": Recorder("good", calls),
    }
    trackers = Trackers([Recorder("disk", calls)], optional)
    for step in range(3):
        trackers.log({}, step)
    trackers.samples([], 3)
    trackers.event("kind", "message", 3)
    trackers.close({})
    assert calls.count("bad.log") == 1
    assert "bad.close" not in calls
    assert calls.count("good.log") == calls.count("disk.log") == 3
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert said.startswith("bad failed and is left out")
    assert "boom" in said


def test_a_fault_in_the_trackers_that_are_always_on_is_not_hidden() -> None:
    with pytest.raises(RuntimeError, match="boom"):
        Trackers([Recorder("disk", [], ("log",))], {}).log({}, 1)


def test_optional_trackers_end_first_so_that_the_end_box_can_speak_of_them() -> None:
    calls: list[str] = []
    Trackers([Recorder("screen", calls)], {"remote": Recorder("remote", calls)}).close({})
    assert calls == ["remote.close", "screen.close"]


def test_console_and_jsonl_are_always_on(
    run_dir: Path, header: Header, capsys: pytest.CaptureFixture[str]
) -> None:
    trackers = build_trackers(Config(), run_dir, header, attempt=1)
    trackers.log({"train/loss": 3.5}, 10)
    assert (run_dir / "metrics.jsonl").read_text().count("\n") == 1
    out = capsys.readouterr().out
    assert "runs/tiny-1ab58d" in out
    assert "loss 3.500" in out


def test_the_command_that_resumes_is_the_one_that_was_typed(
    run_dir: Path, header: Header, capsys: pytest.CaptureFixture[str]
) -> None:
    trackers = build_trackers(Config(), run_dir, header, attempt=1)
    keys = ("best_val_bpb", "final_val_loss", "tokens", "device_hours", "steady_tokens_per_second", "mfu")
    trackers.close({**dict.fromkeys((*keys, "peak_memory_gib")), "exit_reason": "non_finite"})
    assert "python train.py model=tiny 'data.path=my books/*.txt'\n" in capsys.readouterr().out


def test_a_tracker_that_cannot_be_had_is_an_error_before_anything_is_shown(
    run_dir: Path, header: Header, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.setenv("WANDB_MODE", "onlin")
    for logger in (LoggerConfig(tensorboard=TensorboardConfig()), LoggerConfig(wandb=WandbConfig())):
        with pytest.raises(ValueError, match=r"tensorboard|WANDB_MODE=onlin"):
            check_trackers(logger)
        with pytest.raises(ValueError, match=r"tensorboard|WANDB_MODE=onlin"):
            build_trackers(Config(logger=logger), run_dir, header, attempt=1)
    assert capsys.readouterr().out == ""


def test_tracking_imports_neither_torch_nor_wandb_nor_tensorboard() -> None:
    code = (
        "import sys, deepseek_mini.tracking\n"
        "print([m for m in ('torch', 'wandb', 'tensorboard') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
