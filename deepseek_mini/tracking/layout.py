"""Figures as text: numbers, durations, the cells of a progress line, and how they fit a width."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

UNKNOWN = "n/a"
SEPARATOR = " | "
NARROWEST_BAR = 8
WIDEST_BAR = 48


def fixed(value: float | None, digits: int) -> str:
    """A number with so many decimals; a huge one in scientific notation."""
    if value is None:
        return UNKNOWN
    return scientific(value) if math.isfinite(value) and abs(value) >= 1e4 else f"{value:.{digits}f}"


def scientific(value: float | None) -> str:
    """0.00031 -> 3.1e-4."""
    if value is None or not math.isfinite(value):
        return fixed(value, 1)
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def count(value: float | None) -> str:
    """182345 -> 182k."""
    if value is None:
        return UNKNOWN
    for unit in ("", "k", "M", "B"):
        if abs(value) < 999.5:
            return f"{value:.3g}{unit}"
        value /= 1000
    return f"{value:.4g}T"


def percent(fraction: float | None) -> str:
    return UNKNOWN if fraction is None else f"{100 * fraction:.1f}%"


def duration(seconds: float, parts: int = 2) -> str:
    """3725 -> 1h 02m: the largest units, so many of them."""
    rest, found = round(seconds), []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        number, rest = divmod(rest, size)
        if found or number or unit == "s":
            found.append(f"{number:02d}{unit}" if found else f"{number}{unit}")
    return " ".join(found[:parts])


def progress_cells(
    latest: dict[str, Any], step: int, steps: int, seconds_left: float | None
) -> dict[str, Text]:
    """The cells of a progress line, from the latest value of each metric. A dense model has no experts."""
    width = len(str(steps))
    if seconds_left is None:
        eta = UNKNOWN
    else:
        eta = duration(seconds_left, parts=1 if 600 <= seconds_left < 3600 else 2)
    cells = {
        "step": _cell("step", f"{step:>{width}}/{steps} {100 * step // steps:>2}%"),
        "loss": _cell("loss", fixed(latest.get("train/loss"), 3), style="bold"),
        "val": _cell("val", fixed(latest.get("val/loss"), 3), "bpb", fixed(latest.get("val/bpb"), 3)),
        "lr": _cell("lr", scientific(latest.get("optim/lr"))),
        "gnorm": _cell("gnorm", fixed(latest.get("optim/grad_norm"), 2)),
        "speed": Text(count(latest.get("perf/tokens_per_second"))).append(" tok/s", "dim"),
        "mfu": _cell("mfu", percent(latest.get("perf/mfu"))),
        "memory": _cell("mem", f"{fixed(latest.get('perf/memory_gib'), 1)} GiB"),
    }
    if "moe/max_violation" in latest:
        dead = latest.get("moe/dead_experts") or 0
        experts = _cell("experts maxvio", fixed(latest["moe/max_violation"], 2), "dead")
        cells["experts"] = experts.append(f" {dead}", "bold yellow" if dead else "")
    return {**cells, "eta": _cell("eta", eta)}


def _cell(*words: str, style: str = "") -> Text:
    """Labels, dimmed, and values by turns."""
    return Text(" ").join(Text(word, style if n % 2 else "dim") for n, word in enumerate(words))


@dataclass(slots=True)
class Fitted:
    """Cells on two lines if at all possible, with a progress bar where the last line has room."""

    cells: Sequence[Text]
    fraction: float

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = wrap(self.cells, SEPARATOR, options.max_width)
        if len(lines) > 2:
            lines = wrap(self.cells, "  ", options.max_width)
        yield from lines[:-1]
        room = options.max_width - lines[-1].cell_len - 2
        if room < NARROWEST_BAR:
            yield lines[-1]
            return
        row = Table.grid(padding=(0, 2, 0, 0))
        bar = ProgressBar(100, 100 * self.fraction, width=min(room, WIDEST_BAR), complete_style="green")
        row.add_row(lines[-1], bar)
        yield row


def wrap(cells: Sequence[Text], separator: str, width: int) -> list[Text]:
    """Cells joined into lines of at most `width` columns; a cell is never broken."""
    between = Text(separator, "dim")
    lines = [[cells[0]]]
    for cell in cells[1:]:
        if between.join([*lines[-1], cell]).cell_len <= width:
            lines[-1].append(cell)
        else:
            lines.append([cell])
    return [between.join(line) for line in lines]
