"""The tracker on disk: metrics.jsonl, samples.jsonl and events.jsonl, the source of every report."""

import time
from pathlib import Path
from typing import Any

from deepseek_mini.cost.jsonlines import JsonLines
from deepseek_mini.tracking.console import announce


class JsonlTracker:
    """An object a line, in the file before the step ends; a resumed run appends, as another attempt."""

    def __init__(self, run_dir: Path, attempt: int) -> None:
        self._attempt = attempt
        self._metrics, self._samples, self._events = (
            JsonLines(run_dir / f"{name}.jsonl", announce) for name in ("metrics", "samples", "events")
        )

    def log(self, metrics: dict[str, Any], step: int) -> None:
        self._metrics.append({"step": step, "attempt": self._attempt, **metrics})

    def samples(self, rows: list[dict[str, Any]], step: int) -> None:
        self._samples.append(*({"step": step, "attempt": self._attempt, **row} for row in rows))

    def event(self, kind: str, message: str, step: int) -> None:
        facts = {"time": time.time(), "step": step, "attempt": self._attempt}
        self._events.append({**facts, "kind": kind, "message": message})

    def close(self, summary: dict[str, Any]) -> None:
        """Try once more to write what a full disk held back."""
        for file in (self._metrics, self._samples, self._events):
            file.append()
