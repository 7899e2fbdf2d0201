"""Loss against compute over a ladder of sizes: L = a C^-b, a straight line in logarithms.

Three or four sizes cannot tell an irreducible loss apart, so none is fitted: the line holds near the sizes
that were run, and its interval widens beyond them.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from deepseek_mini.analysis.statistics import t_quantile

FEWEST_SIZES = 3
LEAST_SPAN = 2.0
"""Largest compute over the smallest: below there is no ladder to speak of."""


@dataclass(frozen=True, slots=True)
class Line:
    """y = intercept + slope (x - centre), with what its uncertainty needs."""

    slope: float
    intercept: float
    centre: float
    spread: float
    """Sum of the squared distances of x from the centre."""
    residual: float
    """Standard deviation of y about the line."""
    n: int

    def at(self, x: float) -> float:
        return self.intercept + self.slope * (x - self.centre)

    def slope_reach(self, alpha: float) -> float:
        """Half the interval of the slope."""
        return t_quantile(1 - alpha / 2, self.n - 2) * self.residual / math.sqrt(self.spread)

    def reach(self, x: float, alpha: float, new_point: bool = False) -> float:
        """Half the interval of the line at x, or of a new observation there."""
        variance = 1 / self.n + (x - self.centre) ** 2 / self.spread + new_point
        return t_quantile(1 - alpha / 2, self.n - 2) * self.residual * math.sqrt(variance)


def fit_line(x: Sequence[float], y: Sequence[float]) -> Line:
    """Least squares through at least three points."""
    assert len(x) == len(y) >= FEWEST_SIZES
    xs, ys = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    centre, intercept = float(xs.mean()), float(ys.mean())
    spread = float(((xs - centre) ** 2).sum())
    slope = float(((xs - centre) * (ys - intercept)).sum()) / spread
    rest = ys - intercept - slope * (xs - centre)
    return Line(slope, intercept, centre, spread, math.sqrt(float((rest**2).sum()) / (len(xs) - 2)), len(xs))


def is_ladder(flops: Sequence[float]) -> bool:
    return len(set(flops)) >= FEWEST_SIZES and max(flops) >= LEAST_SPAN * min(flops)


def fit_scaling(flops: Sequence[float], losses: Sequence[float], alpha: float) -> dict[str, Any]:
    """Exponent b of L = a C^-b with its interval, and the loss it foretells at ten times the largest compute.

    A point is the mean of a size's seeds.
    """
    line = fit_line(np.log(flops).tolist(), np.log(losses).tolist())
    reach, target = line.slope_reach(alpha), math.log(10 * max(flops))
    margin = line.reach(target, alpha, new_point=True)
    return {
        "flops": list(flops),
        "losses": list(losses),
        "exponent": -line.slope,
        "exponent_low": -line.slope - reach,
        "exponent_high": -line.slope + reach,
        "residual": line.residual,
        "at_ten_times": {
            "flops": math.exp(target),
            "loss": math.exp(line.at(target)),
            "low": math.exp(line.at(target) - margin),
            "high": math.exp(line.at(target) + margin),
        },
        "line": asdict(line),
    }


def fit_trend(flops: Sequence[float], fractions: Sequence[float], alpha: float) -> dict[str, Any]:
    """How a variant's relative difference in loss moves with compute, and where the line ends at the largest.

    A point is a seed's difference at a size. The line at the largest size draws on all of them.
    """
    line, largest = fit_line(np.log10(flops).tolist(), fractions), math.log10(max(flops))
    slope, end = line.slope_reach(alpha), line.reach(largest, alpha)
    trend = {"mean": line.slope, "low": line.slope - slope, "high": line.slope + slope}
    at_largest = {"mean": line.at(largest), "low": line.at(largest) - end, "high": line.at(largest) + end}
    return {
        "flops": list(flops),
        "fractions": list(fractions),
        "per_tenfold": trend | {"shown": _leaves_out_zero(trend)},
        "at_largest": at_largest | {"flops": max(flops), "shown": _leaves_out_zero(at_largest)},
        "line": asdict(line),
        "alpha": alpha,
    }


def _leaves_out_zero(interval: dict[str, float]) -> bool:
    return interval["low"] > 0 or interval["high"] < 0
