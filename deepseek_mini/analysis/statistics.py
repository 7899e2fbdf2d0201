"""Small-sample statistics: intervals of a difference, and what a design could have shown.

Student's t throughout: with two to five seeds there is nothing better than to assume that differences between
seeds are normal, and to say so. numpy and math only.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(128)


@dataclass(frozen=True, slots=True)
class Difference:
    """A difference of two means (variant minus baseline), with its interval."""

    mean: float
    low: float
    high: float
    error: float
    """Standard error of the mean."""
    freedom: float
    n: int
    """Pairs of seeds; without pairs, runs on the smaller side."""
    method: str

    @property
    def shown(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0

    def detectable(self, alpha: float, power: float) -> float:
        """The true difference that such a design shows with chance `power`, at the spread seen."""
        return detectable_shift(self.freedom, alpha, power) * self.error


def paired_difference(differences: Sequence[float], alpha: float) -> Difference:
    """Mean of per-seed differences with its t interval of confidence 1 - alpha; at least two of them."""
    n = len(differences)
    assert n >= 2, n
    error = float(np.std(differences, ddof=1)) / math.sqrt(n)
    return _interval(float(np.mean(differences)), error, n - 1, n, alpha, "paired by seed")


def unpaired_difference(baseline: Sequence[float], variant: Sequence[float], alpha: float) -> Difference:
    """Difference of the means of runs that share no seeds (Welch's t); at least two runs a side."""
    sides = [np.asarray(side, dtype=float) for side in (baseline, variant)]
    assert min(map(len, sides)) >= 2
    parts = [float(side.var(ddof=1)) / len(side) for side in sides]
    squares = sum(part**2 / (len(side) - 1) for part, side in zip(parts, sides, strict=True))
    freedom = sum(parts) ** 2 / squares if squares else float(sum(map(len, sides)) - 2)
    mean = float(sides[1].mean() - sides[0].mean())
    n = min(map(len, sides))
    return _interval(mean, math.sqrt(sum(parts)), freedom, n, alpha, "unpaired (Welch)")


def _interval(mean: float, error: float, freedom: float, n: int, alpha: float, method: str) -> Difference:
    reach = t_quantile(1 - alpha / 2, freedom) * error
    return Difference(mean, mean - reach, mean + reach, error, freedom, n, method)


def t_cdf(x: float, freedom: float) -> float:
    """P(T <= x) of Student's t: with x = sqrt(freedom) tan(a) its density in a is cos(a)^(freedom - 1)."""
    angle = math.atan(x / math.sqrt(freedom))
    nodes = angle / 2 * (_NODES + 1)
    integral = float(np.sum(_WEIGHTS * np.cos(nodes) ** (freedom - 1))) * angle / 2
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(math.pi)
    return 0.5 + scale * integral


@functools.lru_cache(maxsize=256)
def t_quantile(p: float, freedom: float) -> float:
    """The x with P(T <= x) = p, for p of at least 1/2."""
    assert 0.5 <= p < 1, p
    assert freedom >= 1, freedom
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        below = t_cdf(math.sqrt(freedom) * math.tan(middle), freedom) < p
        low, high = (middle, high) if below else (low, middle)
    return math.sqrt(freedom) * math.tan(low)


def power_of(shift: float, freedom: float, alpha: float) -> float:
    """Chance that a two-sided t test at `alpha` shows a true difference of `shift` standard errors.

    The noncentral t: (Z + shift) / S with S^2 ~ chi^2 / freedom, integrated over S.
    """
    critical = t_quantile(1 - alpha / 2, freedom)
    longest = 1 + 8 / math.sqrt(freedom)
    s = longest / 2 * (_NODES + 1)
    half = freedom / 2
    log_density = math.log(2) + half * math.log(half) - math.lgamma(half) + (freedom - 1) * np.log(s)
    density = np.exp(log_density - half * s**2)
    found = _normal_cdf(shift - critical * s) + _normal_cdf(-shift - critical * s)
    return float(np.sum(_WEIGHTS * density * found)) * longest / 2


@functools.lru_cache(maxsize=256)
def detectable_shift(freedom: float, alpha: float, power: float) -> float:
    """The true difference, in standard errors, that a t test at `alpha` shows with chance `power`."""
    low, high = 0.0, 1.0
    while power_of(high, freedom, alpha) < power:
        high *= 2
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if power_of(middle, freedom, alpha) < power else (low, middle)
    return high


def _normal_cdf(x: np.ndarray) -> np.ndarray:
    return np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in x])
