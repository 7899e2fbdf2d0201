"""The figures of a run that a comparison shows."""

import statistics
from dataclasses import dataclass
from typing import Literal

import numpy as np

from deepseek_mini.analysis.runs import SMOOTHED, Run, kv_bytes_per_token

At = Literal["end", "tokens", "flops", "seconds"]
"""Where curves are read: at each run's end, or at the largest budget that all runs reached."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A column of the table."""

    name: str
    title: str
    lower_is_better: bool | None = None


FIGURES = (
    Figure("val/loss", "held-out loss, nats per token", True),
    Figure("val/bpb", "held-out bits per byte", True),
    Figure("val/mtp_loss", "held-out MTP loss", True),
    Figure(SMOOTHED, "training loss, smoothed, last quarter", True),
    Figure("tokens", "tokens"),
    Figure("flops", "training FLOPs", True),
    Figure("tokens_per_second", "tokens/s, median step", False),
    Figure("device_hours", "device-hours", True),
    Figure("memory_gib", "peak memory, GiB", True),
    Figure("kv_bytes_per_token", "KV cache, bytes per token", True),
    Figure("total_params", "parameters, without MTP"),
    Figure("active_params", "active parameters, without MTP"),
    Figure("val/max_violation", "MaxVio, validation set", True),
    Figure("moe/max_violation", "MaxVio per batch, last quarter", True),
    Figure("moe/dead_experts", "dead experts, last step", True),
    Figure("val/mtp_acceptance", "MTP drafts accepted, depth 1", False),
)
CURVES = ("val/loss", "val/bpb", "val/mtp_loss", "val/max_violation", "val/mtp_acceptance")
"""Figures of an evaluation, which can be read at a budget."""
JUDGED = (*CURVES, SMOOTHED)
"""Figures whose differences are judged."""


def run_figures(run: Run, at: At = "end", budget: float | None = None) -> dict[str, float | None]:
    """All figures of a run, None for what it has no record of; evaluations at `budget` if it is given."""
    from deepseek_mini.cost.flops import total_params

    tokens = float(run.rows[-1]["tokens"])
    rates, memory = run.series("perf/tokens_per_second")[1], run.series("perf/memory_gib")[1]
    violations, smoothed = run.series("moe/max_violation")[1], run.series(SMOOTHED)[1]
    measured: dict[str, float | None] = {
        "tokens": tokens,
        "flops": run.flops_per_token * tokens,
        "tokens_per_second": statistics.median(rates) if rates else None,
        "device_hours": run.device_hours,
        "memory_gib": max(memory, default=None),
        "kv_bytes_per_token": float(kv_bytes_per_token(run.config.model)),
        "total_params": float(total_params(run.config.model)),
        "active_params": float(run.active_params),
        "moe/max_violation": _of_last_quarter(violations),
        "moe/dead_experts": run.last("moe/dead_experts"),
    }
    for name in CURVES:
        measured[name] = run.last(name) if budget is None else value_at(run, name, at, budget)
    at_end = _of_last_quarter(smoothed)
    measured[SMOOTHED] = at_end if budget is None else value_at(run, SMOOTHED, at, budget)
    return {figure.name: measured[figure.name] for figure in FIGURES}


def _of_last_quarter(values: list[float]) -> float | None:
    return statistics.mean(values[-max(len(values) // 4, 1) :]) if values else None


def spent(run: Run, at: At) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of a run, and what had been spent when they were trained on: tokens, FLOPs or seconds.

    Seconds are those of steps and waiting for data, from the ledger, steps done again included.
    """
    ends = np.array([0.0, float(run.rows[-1]["tokens"])])
    if at == "flops":
        return ends, ends * run.flops_per_token
    if at != "seconds":
        return ends, ends
    rows = [row for row in run.ledger if row["phase"] in ("step", "data_wait")]
    tokens = np.cumsum([0.0, *(row["tokens"] * (row["event"] == "beat") for row in rows)])
    return tokens, np.cumsum([0.0, *(row["seconds"] for row in rows)])


def common_budget(runs: list[Run], at: At) -> float | None:
    """The largest budget that every run reached at an evaluation; None for `end`."""
    if at == "end":
        return None
    budgets = []
    for run in runs:
        tokens, costs = spent(run, at)
        evaluated = run.series("val/loss")[0]
        budgets.append(float(np.interp(evaluated[-1], tokens, costs)) if evaluated else 0.0)
    return min(budgets)


def value_at(run: Run, name: str, at: At, budget: float) -> float | None:
    """A figure of the evaluations at a budget, on the line between its neighbours."""
    evaluated, values = run.series(name)
    tokens, costs = spent(run, at)
    places = np.interp(evaluated, tokens, costs)
    if not len(places) or not places[0] <= budget <= places[-1] * (1 + 1e-9):
        return None
    return float(np.interp(budget, places, values))
