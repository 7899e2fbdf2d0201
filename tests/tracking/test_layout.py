"""Figures read well and fit."""

import io
from typing import Any

import pytest
from rich.console import Console

from deepseek_mini.tracking.layout import (
    Fitted,
    count,
    duration,
    fixed,
    percent,
    progress_cells,
    scientific,
)

USUAL = {
    "train/loss": 3.412, "val/loss": 3.51, "val/bpb": 1.12, "optim/lr": 3.1e-4, "optim/grad_norm": 0.42,
    "perf/tokens_per_second": 182_345.0, "perf/mfu": 0.312, "perf/memory_gib": 14.1,
    "moe/max_violation": 0.18, "moe/dead_experts": 0,
}  # fmt: skip
WIDE = {
    "train/loss": 11.732, "val/loss": 10.512, "val/bpb": 4.119, "optim/lr": 3.1e-4, "optim/grad_norm": 314.42,
    "perf/tokens_per_second": 1_820_345.0, "perf/mfu": 0.412, "perf/memory_gib": 124.1,
    "moe/max_violation": 31.18, "moe/dead_experts": 12,
}  # fmt: skip


def render(latest: dict[str, Any], step: int, steps: int, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    cells = progress_cells(latest, step, steps, seconds_left=4000)
    with console.capture() as captured:
        console.print(Fitted(list(cells.values()), step / steps))
    return captured.get().splitlines()


@pytest.mark.parametrize("width", [80, 100, 120, 150])
@pytest.mark.parametrize(("latest", "step", "steps"), [(USUAL, 1200, 5000), (WIDE, 1200, 5000), ({}, 1, 9)])
def test_progress_takes_at_most_two_lines_from_80_columns_on(
    latest: dict[str, Any], step: int, steps: int, width: int
) -> None:
    lines = render(latest, step, steps, width)
    assert len(lines) <= 2
    assert max(map(len, lines)) <= width


def test_a_wide_terminal_needs_one_line() -> None:
    assert len(render(USUAL, 1200, 5000, 220)) == 1


def test_a_narrow_terminal_gets_more_lines_and_loses_nothing() -> None:
    lines = render(WIDE, 1200, 5000, 40)
    assert max(map(len, lines)) <= 40
    for cell in progress_cells(WIDE, 1200, 5000, 4000).values():
        assert any(cell.plain in line for line in lines)


def test_progress_line_reads_as_documented() -> None:
    cells = progress_cells(USUAL, 1200, 5000, 750.0)
    assert " | ".join(cell.plain for cell in cells.values()) == (
        "step 1200/5000 24% | loss 3.412 | val 3.510 bpb 1.120 | lr 3.1e-4 | gnorm 0.42 | 182k tok/s | "
        "mfu 31.2% | mem 14.1 GiB | experts maxvio 0.18 dead 0 | eta 12m"
    )


def test_what_is_not_known_is_not_available() -> None:
    cells = progress_cells({"perf/mfu": None}, 1, 10, None)
    assert cells["mfu"].plain == "mfu n/a"
    assert cells["val"].plain == "val n/a bpb n/a"
    assert cells["eta"].plain == "eta n/a"
    assert "experts" not in cells


def test_a_loss_that_is_not_a_number_is_shown_as_such() -> None:
    assert progress_cells({"train/loss": float("nan")}, 1, 10, None)["loss"].plain == "loss nan"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (999.4, "999"), (999.6, "1k"), (8234, "8.23k"), (182_345, "182k"), (999_700, "1M"),
     (4_096_000, "4.1M"), (1.48e13, "14.8T"), (None, "n/a")],
)  # fmt: skip
def test_counts_have_three_figures(value: float | None, text: str) -> None:
    assert count(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (45.4, "45s"), (59.7, "1m 00s"), (552, "9m 12s"), (3725, "1h 02m"), (93784, "1d 02h")],
)
def test_durations_have_two_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_small_and_huge_numbers_are_scientific() -> None:
    assert scientific(2.2e-4) == "2.2e-4"
    assert scientific(0.0) == "0.0e0"
    assert fixed(123456.0, 2) == "1.2e5"
    assert fixed(float("inf"), 2) == "inf"
    assert percent(0.3124) == "31.2%"
