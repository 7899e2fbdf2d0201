"""Where a run tells how it goes: the screen and JSON files always, wandb and TensorBoard when asked."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from deepseek_mini import run_files
from deepseek_mini.config import Config, LoggerConfig
from deepseek_mini.tracking.console import ConsoleTracker, Header, announce
from deepseek_mini.tracking.jsonl import JsonlTracker

__all__ = ["Header", "Tracker", "Trackers", "announce", "build_trackers", "check_trackers"]


class Tracker(Protocol):
    """One place where a run is followed."""

    def log(self, metrics: dict[str, Any], step: int) -> None:
        """Figures of a step by name: numbers, or None for what is unknown."""
        ...

    def samples(self, rows: list[dict[str, Any]], step: int) -> None:
        """Text that the model wrote: `prompt`, `text` (what follows it), and how it was drawn."""
        ...

    def event(self, kind: str, message: str, step: int) -> None:
        """Something out of the ordinary: a spike, a resume, a fallback."""
        ...

    def close(self, summary: dict[str, Any]) -> None:
        """The end of the run, with the content of summary.json."""
        ...


class Trackers:
    """All trackers of a run as one. An optional one that fails is dropped, with one line to say so."""

    def __init__(self, always: list[Tracker], optional: dict[str, Tracker]) -> None:
        self._always, self._optional = always, optional

    def log(self, metrics: dict[str, Any], step: int) -> None:
        self._each(lambda tracker: tracker.log(metrics, step))

    def samples(self, rows: list[dict[str, Any]], step: int) -> None:
        self._each(lambda tracker: tracker.samples(rows, step))

    def event(self, kind: str, message: str, step: int) -> None:
        self._each(lambda tracker: tracker.event(kind, message, step))

    def close(self, summary: dict[str, Any]) -> None:
        self._each(lambda tracker: tracker.close(summary))

    def _each(self, call: Callable[[Tracker], None]) -> None:
        """The optional ones first: what they have to say at the end stands in the console's end box."""
        for name, tracker in list(self._optional.items()):
            try:
                call(tracker)
            except Exception as error:
                del self._optional[name]
                announce(f"{name} failed and is left out from here on ({error!r}); metrics.jsonl goes on")
        for tracker in self._always:
            call(tracker)


def check_trackers(config: LoggerConfig) -> None:
    """Raise ValueError if a tracker that is asked for cannot be had: a missing package, an unknown mode."""
    if config.tensorboard is not None:
        from deepseek_mini.tracking.tensorboard import summary_writer

        summary_writer()
    if config.wandb is not None:
        from deepseek_mini.tracking.wandb import choose_mode

        choose_mode(config.wandb)


def build_trackers(config: Config, run_dir: Path, header: Header, attempt: int) -> Trackers:
    """The trackers that `logger` asks for; shows the header. Raises ValueError as `check_trackers` does."""
    overrides = (run_dir / run_files.OVERRIDES).read_text().splitlines()
    commands = {"resume": shlex.join(["python", "train.py", *overrides])}
    optional: dict[str, Tracker] = {}
    if config.logger.tensorboard is not None:
        from deepseek_mini.tracking.tensorboard import TensorboardTracker

        optional["tensorboard"] = TensorboardTracker(config.logger.tensorboard, run_dir, commands)
    if config.logger.wandb is not None:
        from deepseek_mini.tracking.wandb import WandbTracker, choose_mode

        mode, reason = choose_mode(config.logger.wandb)
        if mode != "disabled":
            optional["wandb"] = WandbTracker(config, run_dir, commands, mode, reason)
    return Trackers([JsonlTracker(run_dir, attempt), ConsoleTracker(header, run_dir, commands)], optional)
