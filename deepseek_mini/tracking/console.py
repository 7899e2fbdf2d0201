"""The screen of a run, and `announce`, through which all other code prints its messages.

On a terminal: a header, a progress display that stays below everything else, a line per evaluation,
samples, events and an end box. Elsewhere (a pipe, a file, TERM=dumb): the same as plain text, with a line
per logged step.
"""

import atexit
import io
import os
import shlex
import statistics
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console, RenderableType
from rich.live import Live
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from deepseek_mini import run_files
from deepseek_mini.tracking.layout import (
    SEPARATOR,
    Fitted,
    count,
    duration,
    fixed,
    percent,
    progress_cells,
)

SAMPLE_LINES = 4
STEPS_FOR_ETA = 16
LABEL_WIDTH = 13

_screen: Console | None = None


def announce(message: str) -> None:
    """Print a message as it is, on stdout; above the progress display if there is one."""
    _say(_screen or make_console(), Text(message))


def make_console(file: TextIO | None = None, width: int | None = None) -> Console:
    """A console that is live on a real terminal only, whatever FORCE_COLOR says; stdout by default."""
    stream = file or sys.stdout
    live = stream.isatty() and os.environ.get("TERM") != "dumb"
    return Console(file=file, width=width, force_interactive=live)


@dataclass(slots=True)
class Header:
    """What a run is, a line each, with the reason wherever something was chosen for the user."""

    run: str
    """The run directory."""
    start: str
    """Where it begins: afresh, or from a checkpoint."""
    device: str
    precision: str
    parameters: str
    flops: str
    """FLOPs per token with their convention, which is that of the MFU too."""
    peak: str
    """What the MFU is measured against."""
    data: str
    plan: str
    steps: int
    """Steps of the whole run."""


class ConsoleTracker:
    """Header, progress, samples, events and the end box."""

    def __init__(
        self, header: Header, run_dir: Path, commands: dict[str, str], console: Console | None = None
    ) -> None:
        """Show the header. `commands` are those to show at the end, by what they are for."""
        global _screen
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")  # a sample may hold what the terminal's encoding lacks
        self._console = _screen = console or make_console()
        self._run_dir, self._commands, self._steps = run_dir, commands, header.steps
        evaluated = [row for row in run_files.read_metrics(run_dir) if "val/loss" in row]
        self._latest: dict[str, Any] = evaluated[-1] if evaluated else {}
        self._step_seconds: deque[float] = deque(maxlen=STEPS_FOR_ETA)
        self._prompt = "The "
        self._live: Live | None = None
        self._say_header(header)
        if self._console.is_interactive:
            waiting = Text(f"step 0/{header.steps}: the first one takes a while", "dim")
            self._live = live = Live(waiting, console=self._console, auto_refresh=False)
            live.start(refresh=True)
            atexit.register(live.stop)  # brings the cursor back if training dies

    def log(self, metrics: dict[str, Any], step: int) -> None:
        self._latest.update(metrics)
        if (seconds := metrics.get("perf/step_seconds")) is not None:
            self._step_seconds.append(seconds)
        left = statistics.median(self._step_seconds) * (self._steps - step) if self._step_seconds else None
        cells = progress_cells(self._latest, step, self._steps, left)
        if self._live is None:
            self._say(Text(SEPARATOR).join(cells.values()))
            return
        if metrics.get("val/bpb") is not None:
            self._say(Text(SEPARATOR, "dim").join([cells["step"], cells["loss"], cells["val"]]))
        with _spared(self._console):
            self._live.update(Fitted(list(cells.values()), step / self._steps), refresh=True)

    def samples(self, rows: list[dict[str, Any]], step: int) -> None:
        self._prompt = rows[0]["prompt"].split("\n")[0]
        self._say(Text(f"samples at step {step}", "dim"))
        for row in rows:
            lines = [line for line in _printable(row["prompt"] + row["text"]).split("\n") if line.strip()]
            if len(lines) > SAMPLE_LINES:
                lines = [*lines[:SAMPLE_LINES], "..."]
            shown = "\n".join(("    " if n else "  > ") + line for n, line in enumerate(lines))
            self._say(Text(shown, "dim", no_wrap=True, overflow="ellipsis"))

    def event(self, kind: str, message: str, step: int) -> None:
        self._say(Text(f"step {step} | {kind}: {message}", "yellow"))

    def close(self, summary: dict[str, Any]) -> None:
        """Show the end box: what came out, where it lies, and what to type next."""
        global _screen
        if self._live is not None:
            self._live.stop()
            atexit.unregister(self._live.stop)
        finished = summary["exit_reason"] == "finished"
        style = "green" if finished else "yellow"
        self._say(_rule(self._console, style, Text(summary["exit_reason"], f"bold {style}")))
        self._say_rows(self._results(summary))
        sample = ["python", "scripts/sample.py", str(self._run_dir), "--prompt", self._prompt]
        commands = {"sample": shlex.join(sample), **self._commands}
        if finished:
            commands.pop("resume")
        for purpose, command in list(commands.items()):
            self._say(Text.assemble((f"{purpose:<{LABEL_WIDTH}}", "dim"), command))
        self._say(_rule(self._console, style))
        _screen = None

    def _results(self, summary: dict[str, Any]) -> dict[str, str]:
        bpb, loss = fixed(summary["best_val_bpb"], 3), fixed(summary["final_val_loss"], 3)
        speed = count(summary["steady_tokens_per_second"])
        wall = summary.get("wall_seconds")
        hours = fixed(summary["device_hours"], 3)
        kept = self._latest.get("val/mtp_acceptance")
        drafts = "" if kept is None else f"; {percent(kept)} of MTP's drafts would be kept"
        return {
            "validation": f"best {bpb} bits per byte, final loss {loss}{drafts}",
            "tokens": count(summary["tokens"]) + (f" in {duration(wall)}" if wall else ""),
            "speed": f"{speed} tok/s in the median step, mfu {percent(summary['mfu'])}",
            "memory": f"{fixed(summary['peak_memory_gib'], 2)} GiB at its peak",
            "device-hours": f"{hours}, all attempts and all waiting in",
            "files": f"{self._run_dir}/ has summary.json, metrics.jsonl, ledger.jsonl and checkpoints/",
        }

    def _say_header(self, header: Header) -> None:
        self._say(_rule(self._console, "dim", Text(header.run, "bold")))
        self._say_rows(
            {
                "start": header.start,
                "device": header.device,
                "precision": header.precision,
                "parameters": header.parameters,
                "FLOPs": header.flops,
                "peak": header.peak,
                "data": header.data,
                "plan": header.plan,
            }
        )
        self._say(_rule(self._console, "dim"))

    def _say_rows(self, rows: dict[str, str]) -> None:
        """Labels and values; on a terminal, long values wrap within their column."""
        if self._console.is_interactive:
            grid = Table.grid(padding=(0, 1, 0, 0))
            grid.add_column(style="dim", width=LABEL_WIDTH - 1)
            grid.add_column(overflow="fold")
            for label, value in rows.items():
                grid.add_row(label, Text(value))
            self._say(grid)
        else:
            self._say(Text("\n".join(f"{label:<{LABEL_WIDTH}}{value}" for label, value in rows.items())))

    def _say(self, what: RenderableType) -> None:
        _say(self._console, what)


def _say(console: Console, what: RenderableType) -> None:
    """Print; text is left to the terminal to wrap, so that commands can be copied and lines searched."""
    with _spared(console):
        console.print(what, soft_wrap=isinstance(what, Text) and not what.no_wrap)


@contextmanager
def _spared(console: Console) -> Iterator[None]:
    """A screen that cannot be written, its disk full or its terminal gone, goes quiet; the run goes on."""
    try:
        yield
    except OSError as error:
        with suppress(OSError):
            os.write(2, f"the screen goes quiet ({error.strerror}); the run goes on\n".encode())
        # What is left in the stream's buffer would otherwise fail the exit of the process.
        os.dup2(os.open(os.devnull, os.O_WRONLY), console.file.fileno())


def _rule(console: Console, style: str, title: Text | str = "") -> Rule:
    return Rule(title, style=style, characters="\u2500" if console.encoding.startswith("utf") else "-")


def _printable(text: str) -> str:
    """Text that can do a terminal no harm: a model may write any control character."""
    return "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text.expandtabs(4))
