"""The meter: an account of every second that a run holds its devices.

It is a state machine. From the creation of the process to its end it is in exactly one phase, and each
interval is the difference of two readings of the monotonic clock, taken where the phase changes; no
interval is found by subtracting the others from a total. A thread writes what has passed to
`ledger.jsonl` every heartbeat, in the middle of a phase too, so that a kill -9 loses at most one
heartbeat. The ledger outlives the process: every attempt at a run appends to the same file.
"""

import atexit
import gc
import logging
import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from deepseek_mini.cost.jsonlines import JsonLines, read_lines

Phase = Literal["startup", "compile", "step", "data_wait", "evaluate", "sample", "checkpoint"]
Event = Literal["start", "beat", "redo", "end"]

_IMPORTED = time.monotonic()

_warn = logging.getLogger(__name__).warning


@dataclass(slots=True)
class _Work:
    seconds: float = 0.0
    steps: int = 0
    tokens: int = 0
    model_flops: float = 0.0


class Meter:
    """Writes the ledger of one attempt at a run.

    Outside every `with meter.phase(...)` it is `startup` until the first step begins, and `step` from
    then on: what lies between the parts of the training loop belongs to the loop. A second meter in one
    process starts where the first was closed, so that no second is counted twice.

    Steps are counted once: over all attempts, the steps of the `beat` rows add up to the highest step
    that the run has reached. Steps below it, done again after a crash, go to `redo` rows with all that
    happens meanwhile.
    """

    _claimed_until: ClassVar[float] = 0.0

    def __init__(
        self,
        path: Path,
        device: str,
        devices: int = 1,
        heartbeat_seconds: float = 10.0,
        announce: Callable[[str], None] = _warn,
    ) -> None:
        """Start an attempt: one more than the last one in `path`; `device` is its name for the reader.

        Raises ValueError if a line of the ledger is damaged.
        """
        self._since = max(time.monotonic() - _process_age(announce), Meter._claimed_until)
        self._file = JsonLines(path, announce, sync=True)
        rows = read_ledger(path) if path.exists() else []
        self.attempt: int = 1 + max((row["attempt"] for row in rows), default=0)
        self._highest = steps_recorded(rows)
        self._step = 0
        self._device, self._devices = device, devices
        self._base: Phase = "startup"
        self._inner: list[Phase] = []
        self._pending: defaultdict[tuple[Event, Phase], _Work] = defaultdict(_Work)
        self._totals: dict[str, float] = dict.fromkeys(get_args(Phase), 0.0)
        self._state, self._writing = threading.Lock(), threading.Lock()
        self._closed = threading.Event()
        self._charge("start")
        self.flush()
        atexit.register(self.close)
        # Python's last garbage collection, a second or more with torch loaded, would follow the ledger's end.
        atexit.register(gc.freeze)
        threading.Thread(target=self._beat, args=(heartbeat_seconds,), name="meter", daemon=True).start()

    @contextmanager
    def phase(self, name: Phase) -> Iterator[None]:
        """Charge what runs inside to `name`; the innermost phase gets the seconds."""
        assert name in get_args(Phase), name
        with self._state:
            self._charge()
            self._inner.append(name)
            if name == "step":
                self._base = "step"
        try:
            yield
        finally:
            with self._state:
                self._charge()
                self._inner.pop()

    def start_at(self, step: int) -> None:
        """Resume after `step` steps: the next one to be counted is `step` + 1.

        Steps that a checkpoint brings along from elsewhere are entered with neither seconds nor tokens.
        """
        with self._state:
            self._charge()
            self._step = step
            if step > self._highest:
                self._pending["beat", "step"].steps += step - self._highest
                self._highest = step

    def count(self, steps: int, tokens: int, model_flops: float) -> None:
        """Enter optimizer steps that have just been done, with their tokens and model FLOPs."""
        with self._state:
            self._charge()
            again = min(steps, max(0, self._highest - self._step))
            parts: dict[Event, int] = {"redo": again, "beat": steps - again}
            for event, part in parts.items():
                if part:
                    work = self._pending[event, "step"]
                    work.steps += part
                    work.tokens += tokens * part // steps
                    work.model_flops += model_flops * part / steps
            self._step += steps
            self._highest = max(self._highest, self._step)

    def totals(self) -> dict[str, float]:
        """Seconds per phase of this attempt up to now; their sum is the age of the process."""
        with self._state:
            self._charge()
            return dict(self._totals)

    def flush(self) -> None:
        """Write what has passed since the last flush, a row per phase."""
        with self._writing:
            if not self._closed.is_set():
                self._file.append(*self._take())

    def close(self) -> None:
        """Write the rest and the `end` row; nothing is written after. Also called as the process exits."""
        with self._writing:
            if self._closed.is_set():
                return
            self._closed.set()
            self._file.append(*self._take(), self._row("end", self._current, _Work()))
            Meter._claimed_until = self._since
        atexit.unregister(self.close)

    def __enter__(self) -> "Meter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _current(self) -> Phase:
        return self._inner[-1] if self._inner else self._base

    def _charge(self, event: Event | None = None) -> None:
        """End the running interval now and begin the next."""
        now = time.monotonic()
        again = self._step < self._highest and self._current not in ("startup", "compile")
        self._pending[event or ("redo" if again else "beat"), self._current].seconds += now - self._since
        self._totals[self._current] += now - self._since
        self._since = now

    def _take(self) -> list[dict[str, Any]]:
        with self._state:
            self._charge()
            pending = dict(self._pending)
            self._pending.clear()
        return [self._row(event, phase, work) for (event, phase), work in pending.items()]

    def _row(self, event: Event, phase: Phase, work: _Work) -> dict[str, Any]:
        return {
            "time": time.time(),
            "attempt": self.attempt,
            "event": event,
            "phase": phase,
            "devices": self._devices,
            "device": self._device,
            **asdict(work),
        }

    def _beat(self, heartbeat_seconds: float) -> None:
        while not self._closed.wait(heartbeat_seconds):
            self.flush()


def read_ledger(path: Path) -> list[dict[str, Any]]:
    """Rows of all attempts, in the order of writing; a line that a kill left unfinished is skipped.

    Raises ValueError naming the line if another is damaged, FileNotFoundError if there is no ledger.
    """
    return read_lines(path)


def seconds_by_phase(rows: Iterable[dict[str, Any]]) -> dict[str, float]:
    """Seconds of each phase, first time and redone together."""
    seconds = dict.fromkeys(get_args(Phase), 0.0)
    for row in rows:
        seconds[row["phase"]] += row["seconds"]
    return seconds


def device_seconds(rows: Iterable[dict[str, Any]]) -> float:
    """Metered device-seconds: every row, so restarts, waiting and steps done again are in."""
    return sum(row["seconds"] * row["devices"] for row in rows)


def steps_recorded(rows: Iterable[dict[str, Any]]) -> int:
    """The highest step that the run has reached."""
    return sum(row["steps"] for row in rows if row["event"] == "beat")


def _process_age(announce: Callable[[str], None]) -> float:
    """Seconds since the kernel created this process; where it does not tell, since this module's import."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return time.clock_gettime(time.CLOCK_BOOTTIME) - started
    except (OSError, AttributeError):
        announce("the system does not tell when this process began: the ledger starts at the meter's import")
        return time.monotonic() - _IMPORTED
