"""GPU-hours of a run from published runs alone: exact FLOPs over a fitted share of the peak.

    hours = FLOPs x recomputation / (peak x exp(b . x))

The five features x are mechanisms; the coefficients b have priors with their reasons in
`data/prior_coefficients.csv`, written before the model was first scored (docs/results/backtest.md).
Organisations differ from each other, for reasons that are not in a table (their cluster, their software, what
they count as the run): each has an effect of its own, and a new one is a draw.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deepseek_mini.cost.runs import FULL_RECOMPUTE, Run
from deepseek_mini.cost.tables import read_table

ORGANISATION_SD = 0.2
"""Of log hours between organisations, at equal features."""
RUN_SD = 0.2
"""Of log hours between runs of one organisation."""
DEGREES_OF_FREEDOM = 4.0
"""Of the Student t that a run's deviation follows: some published hours are another thing than the run."""
REFERENCE_PEAK = 312e12
REFERENCE_ACTIVE = 10e9
REFERENCE_YEAR = 2023
COVERAGE = 0.8
"""Of the bands."""


@dataclass(frozen=True, slots=True)
class Efficiency:
    """Fitted coefficients."""

    coefficients: NDArray[np.float64]

    def hours(self, run: Run) -> float:
        return _hours_at_peak(run) / math.exp(float(features(run) @ self.coefficients))


@dataclass(frozen=True, slots=True)
class Prediction:
    """GPU-hours with their 80% band."""

    hours: float
    low: float
    high: float


@functools.lru_cache(maxsize=4096)
def features(run: Run) -> NDArray[np.float64]:
    """What the share of the peak depends on, in the order of `data/prior_coefficients.csv`."""
    return np.array(
        [
            1.0,
            math.log(run.peak / REFERENCE_PEAK),
            float(run.shape.n_moe_layers > 0),
            math.log(run.shape.active_parameters / REFERENCE_ACTIVE),
            float(run.year - REFERENCE_YEAR),
        ]
    )


def fit(runs: Sequence[Run]) -> Efficiency:
    """Posterior mean of the coefficients: generalised least squares with their priors.

    Runs of one organisation share its effect, so that ten runs of one do not count as ten; outliers are
    weighted down as a Student t would.
    """
    priors = read_table("prior_coefficients")
    mean = np.array([float(row["mean"]) for row in priors])
    precision = np.diag([float(row["sd"]) ** -2 for row in priors])
    if not runs:
        return Efficiency(mean)
    x = np.array([features(run) for run in runs])
    y = np.array([math.log(_hours_at_peak(run) / _actual(run)) for run in runs])
    same_org = np.array([[a.org.lower() == b.org.lower() for b in runs] for a in runs])
    weights = np.ones(len(runs))
    coefficients = mean
    for _ in range(20):
        covariance = ORGANISATION_SD**2 * same_org + np.diag(RUN_SD**2 / weights)
        weighted = np.linalg.solve(covariance, x)
        coefficients = np.linalg.solve(x.T @ weighted + precision, weighted.T @ y + precision @ mean)
        deviations = (y - x @ coefficients) / math.hypot(ORGANISATION_SD, RUN_SD)
        weights = (DEGREES_OF_FREEDOM + 1) / (DEGREES_OF_FREEDOM + deviations**2)
    return Efficiency(coefficients.astype(np.float64))


def predict(run: Run, published: Sequence[Run]) -> Prediction:
    """Hours of `run` from the published runs of other organisations, with a calibrated 80% band.

    The band is conformal: the runs left are predicted again, each without its own organisation, and the band
    has the width that these errors ask for. Organisations count alike in it, as the new one is exchangeable
    with them and not with their runs (arXiv:2306.06342). It does not depend on `run`'s own hours.
    """
    others = hold_out(run, published)
    if len({other.org for other in others}) < 2:
        raise ValueError(f"{run.model}: needs published runs of two other organisations at least")
    hours, width = fit(others).hours(run), math.exp(conformal_width(others))
    return Prediction(hours, hours / width, hours * width)


def hold_out(run: Run, published: Sequence[Run]) -> list[Run]:
    """The runs that share neither organisation nor name with `run`."""
    return [p for p in published if p.org.lower() != run.org.lower() and p.model.lower() != run.model.lower()]


def conformal_width(runs: Sequence[Run]) -> float:
    """The error of log hours that covers `COVERAGE` of a new organisation's runs.

    Each organisation has the same share, 1 / (n + 1), of the errors; the new one has the last. Where that
    asks for more than the largest error seen, it is the largest.
    """
    by_org: dict[str, list[float]] = {}
    orgs = sorted({run.org for run in runs})
    for org in orgs:
        model = fit([run for run in runs if run.org != org])
        own = [run for run in runs if run.org == org]
        by_org[org] = [abs(math.log(model.hours(run) / _actual(run))) for run in own]
    share = {org: 1 / ((len(orgs) + 1) * len(errors)) for org, errors in by_org.items()}
    ranked = sorted((error, share[org]) for org, errors in by_org.items() for error in errors)
    covered = 0.0
    for error, part in ranked:
        covered += part
        if covered >= COVERAGE - 1e-9:
            return error
    return ranked[-1][0]


def _actual(run: Run) -> float:
    assert run.gpu_hours is not None
    return run.gpu_hours


@functools.lru_cache(maxsize=4096)
def _hours_at_peak(run: Run) -> float:
    return run.ideal_hours * (FULL_RECOMPUTE if run.full_recompute else 1.0)
