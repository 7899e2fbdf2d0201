"""TensorBoard event files in the run directory."""

from pathlib import Path
from typing import Any

from deepseek_mini.config import TensorboardConfig


class TensorboardTracker:
    """Scalars, samples and events for `tensorboard --logdir`; its own thread writes them."""

    def __init__(self, config: TensorboardConfig, run_dir: Path, commands: dict[str, str]) -> None:
        """Open the event file. Raises ValueError if the tensorboard package is missing."""
        folder = run_dir / "tensorboard"
        self._writer = summary_writer()(folder, flush_secs=config.flush_seconds)
        commands["curves"] = f"tensorboard --logdir {folder}"

    def log(self, metrics: dict[str, Any], step: int) -> None:
        for name, value in metrics.items():
            if value is not None:
                self._writer.add_scalar(name, value, step)

    def samples(self, rows: list[dict[str, Any]], step: int) -> None:
        for number, row in enumerate(rows, start=1):
            indented = "\n".join(f"    {line}" for line in (row["prompt"] + row["text"]).split("\n"))
            self._writer.add_text(f"samples/{number}", indented, step)

    def event(self, kind: str, message: str, step: int) -> None:
        self._writer.add_text(f"events/{kind}", message, step)

    def close(self, summary: dict[str, Any]) -> None:
        self._writer.close()


def summary_writer() -> Any:
    """The class of torch that writes event files. Raises ValueError if the tensorboard package is missing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError(
            "logger=tensorboard needs a package that is not installed: pip install -e '.[tensorboard]'"
        ) from error
    return SummaryWriter
