"""What a run directory proves: its device-hours, line by line, its rate, and its MFU."""

import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from deepseek_mini import run_files
from deepseek_mini.cost.meter import device_seconds, read_ledger, steps_recorded

STEADY_STEPS = 3
"""Logged steps that a median needs at least."""


@dataclass(frozen=True, slots=True)
class LedgerLine:
    """A phase of the ledger, of steps done for the first time or again after a crash."""

    phase: str
    again: bool
    device_hours: float
    steps: int
    tokens: int


@dataclass(frozen=True, slots=True)
class RunEvidence:
    """A run of this package, from its files alone."""

    run: str
    device: str
    devices: int
    is_gpu: bool
    lines: list[LedgerLine]
    device_hours: float
    """Metered: all rows of the ledger."""
    steps: int
    tokens: int
    """Trained on, counted once."""
    model_flops: float
    tokens_per_second: float
    """Of the median logged step."""
    mfu: float | None
    """Of the median logged step; None where the device's peak is not known."""
    of_fp8_peak: bool
    """Whether MFU counts against the FP8 peak: of a run in FP8 on tensor cores."""
    attempts: int

    @property
    def steady_device_hours(self) -> float:
        """Device-hours if every step had been the median one."""
        return self.tokens / self.tokens_per_second / 3600 * self.devices

    @property
    def goodput(self) -> float:
        return self.steady_device_hours / self.device_hours


def read_run(run_dir: Path) -> RunEvidence:
    """Raises ValueError naming the file that is missing, damaged, or holds too few steps for a median."""
    config = run_files.read_config(run_dir)
    path = run_dir / run_files.LEDGER
    rows = read_checked_ledger(path)
    first = [row for row in rows if row["event"] != "redo"]
    tokens = sum(row["tokens"] for row in first)
    if not tokens or not device_seconds(rows):
        raise ValueError(f"{path}: no step is in it; give the directory of a run that has trained")
    rates, mfus = (_logged(run_dir, f"perf/{name}") for name in ("tokens_per_second", "mfu"))
    if len(rates) < STEADY_STEPS:
        raise ValueError(
            f"{run_dir}: {len(rates)} logged steps, a steady rate needs {STEADY_STEPS}; train for longer, or "
            "log more often with trainer.log_every"
        )
    device = rows[-1]["device"]
    return RunEvidence(
        run=str(run_dir),
        device=device,
        devices=rows[-1]["devices"],
        is_gpu=config.device.value == "cuda" or "NVIDIA" in device,
        lines=_lines(rows),
        device_hours=device_seconds(rows) / 3600,
        steps=steps_recorded(rows),
        tokens=tokens,
        model_flops=sum(row["model_flops"] for row in first),
        tokens_per_second=median(rates),
        mfu=median(mfus) if mfus else None,
        of_fp8_peak=_on_fp8_tensor_cores(run_files.read_environment(run_dir) or {}),
        attempts=max(row["attempt"] for row in rows),
    )


def read_checked_ledger(path: Path) -> list[dict[str, Any]]:
    """Rows with all that our ledgers have. Raises ValueError naming a missing file or a damaged line."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file; give the directory of a run that has trained")
    rows = read_ledger(path)
    for line, row in enumerate(rows, start=1):
        _check(path, line, row)
    return rows


def _check(path: Path, line: int, row: dict[str, Any]) -> None:
    """Raises ValueError naming the line of the ledger that is not one of ours."""
    for name in ("attempt", "devices", "seconds", "steps", "tokens", "model_flops"):
        if not is_number(row.get(name)):
            raise ValueError(
                f"{path}: line {line}: {name} is {row.get(name)!r}, not a number; remove that line"
            )
    if missing := {"event", "phase", "device"} - row.keys():
        raise ValueError(f"{path}: line {line}: no {min(missing)}; remove that line")


def _logged(run_dir: Path, name: str) -> list[float]:
    """What the steps logged under a name, in order; steps without it are passed over."""
    values = [row[name] for row in run_files.read_metrics(run_dir) if row.get(name) is not None]
    for value in values:
        if not is_number(value) or not value:
            raise ValueError(f"{run_dir / run_files.METRICS}: {name} is {value!r}; remove that line")
    return values


def is_number(value: Any) -> bool:
    """Whether it is finite and not negative."""
    return isinstance(value, int | float) and 0 <= value < math.inf


def _on_fp8_tensor_cores(environment: dict[str, Any]) -> bool:
    return str(environment.get("precision", "")).startswith(("fp8 by te", "fp8 by triton"))


def _lines(rows: list[dict[str, Any]]) -> list[LedgerLine]:
    sums: dict[tuple[str, bool], list[float]] = defaultdict(lambda: [0.0, 0, 0])
    for row in rows:
        line = sums[row["phase"], row["event"] == "redo"]
        line[0] += row["seconds"] * row["devices"] / 3600
        line[1] += row["steps"]
        line[2] += row["tokens"]
    return [
        LedgerLine(phase, again, hours, int(steps), int(tokens))
        for (phase, again), (hours, steps, tokens) in sorted(sums.items(), key=lambda item: -item[1][0])
    ]
