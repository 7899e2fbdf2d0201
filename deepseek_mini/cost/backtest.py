"""The cost model against published runs, each predicted without any run of its own organisation."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from deepseek_mini.cost.predict import Prediction, hold_out, predict
from deepseek_mini.cost.runs import Run

N_RESAMPLES = 2000
SEED = 0


@dataclass(frozen=True, slots=True)
class Scored:
    """A run, what was predicted, and what it took."""

    model: str
    org: str
    actual: float
    predicted: float
    low: float
    high: float

    @property
    def error(self) -> float:
        """Absolute, as a fraction of what it took."""
        return abs(self.predicted / self.actual - 1)

    @property
    def covered(self) -> bool:
        return self.low <= self.actual <= self.high


BASELINES: dict[str, Callable[[Run, Sequence[Run]], float]] = {
    "40% MFU, exact FLOPs": lambda run, others: run.ideal_hours / 0.4,
    "40% MFU, 6ND": lambda run, others: 6 * run.shape.active_parameters * run.tokens / run.peak / 3600 / 0.4,
    "median MFU of the GPU generation": lambda run, others: run.ideal_hours / _generation_mfu(run, others),
}
"""Names of what the model has to beat; the last sees the runs of other organisations, as the model does."""


def score_runs(runs: Sequence[Run], published: Sequence[Run]) -> tuple[list[Scored], dict[str, list[Scored]]]:
    """Every run predicted from `published` runs of other organisations, by the model and each baseline."""
    model = [_scored(run, predict(run, published)) for run in runs]
    baselines: dict[str, list[Scored]] = {name: [] for name in BASELINES}
    for run in runs:
        for name, baseline in BASELINES.items():
            hours = baseline(run, hold_out(run, published))
            baselines[name].append(_scored(run, Prediction(hours, hours, hours)))
    return model, baselines


def summarise(scored: Sequence[Scored]) -> dict[str, float]:
    """mdape, p90 of the absolute error, bias (median of predicted / actual - 1)."""
    errors = [s.error for s in scored]
    return {
        "mdape": median(errors),
        "p90": float(np.quantile(errors, 0.9)),
        "bias": median(s.predicted / s.actual for s in scored) - 1,
    }


def coverage(scored: Sequence[Scored]) -> dict[str, Any]:
    """Share of runs inside their band, its 90% binomial (Wilson) interval, and the bands' median factor."""
    inside = sum(s.covered for s in scored)
    return {
        "coverage80": inside / len(scored),
        "coverage80_interval": wilson(inside, len(scored)),
        "band_factor": median(math.sqrt(s.high / s.low) for s in scored),
    }


def bootstrap(model: Sequence[Scored], baselines: dict[str, list[Scored]]) -> dict[str, Any]:
    """90% intervals when organisations, not runs, are drawn again; of each baseline also its lead's.

    `lead` is the baseline's error less the model's on the same draw: above 0 the model is better, which it
    is in the share `lead_better` of the draws.
    """
    by_org: dict[str, list[int]] = {}
    for index, scored in enumerate(model):
        by_org.setdefault(scored.org, []).append(index)
    groups = list(by_org.values())
    rng = np.random.default_rng(SEED)
    draws = [
        np.concatenate([groups[i] for i in rng.integers(len(groups), size=len(groups))])
        for _ in range(N_RESAMPLES)
    ]
    own = _errors(model, draws)
    result: dict[str, Any] = {"model": _intervals(own)}
    for name, scored in baselines.items():
        theirs = _errors(scored, draws)
        leads = {f"{key}_lead": theirs[key] - own[key] for key in own}
        better = {f"{key}_better": float(np.mean(values > 0)) for key, values in leads.items()}
        result[name] = _intervals(theirs) | _intervals(leads) | better
    return result


def wilson(successes: int, trials: int, z: float = 1.6449) -> tuple[float, float]:
    """Wilson's score interval of a proportion; z = 1.6449 is 90%."""
    share, spread = successes / trials, z * z / trials
    middle = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / trials + spread / (4 * trials)) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


def _scored(run: Run, prediction: Prediction) -> Scored:
    assert run.gpu_hours is not None
    return Scored(run.model, run.org, run.gpu_hours, prediction.hours, prediction.low, prediction.high)


def _generation_mfu(run: Run, others: Sequence[Run]) -> float:
    """Median MFU of the runs on GPUs of the same peak; of all, where there is none."""
    same = [other.mfu for other in others if other.peak == run.peak]
    return median(same or [other.mfu for other in others])


def _errors(scored: Sequence[Scored], draws: list[Any]) -> dict[str, Any]:
    errors = np.array([s.error for s in scored])
    return {
        "mdape": np.array([np.median(errors[draw]) for draw in draws]),
        "p90": np.array([np.quantile(errors[draw], 0.9) for draw in draws]),
    }


def _intervals(values: dict[str, Any]) -> dict[str, Any]:
    quantiles = {name: np.quantile(draws, [0.05, 0.95]) for name, draws in values.items()}
    return {f"{name}_interval": [float(q) for q in ends] for name, ends in quantiles.items()}
