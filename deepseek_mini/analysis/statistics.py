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
_NORMAL = np.linspace(-9.0, 9.0, 6001)
_NORMAL_CDF = np.array([0.5 * math.erfc(-x / math.sqrt(2)) for x in _NORMAL])
"""The normal distribution, close enough to be read between its points (within 1e-6)."""


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
        """The true difference that a repetition shows with chance `power`, by the spread seen."""
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
    """Chance that a two-sided t test at `alpha` shows a true difference of `shift` standard errors."""
    return float(_powers(np.array([shift]), freedom, alpha)[0])


@functools.lru_cache(maxsize=256)
def detectable_shift(freedom: float, alpha: float, power: float) -> float:
    """The true difference that a t test at `alpha` shows with chance `power`, in estimated standard errors.

    Few seeds may estimate too small an error, and with it too small a difference: the chance is that of a
    repetition, over all the estimates that a first experiment may have made.
    """
    estimates, weights = _spreads(freedom)

    def found(shift: float) -> float:
        return float(weights @ _powers(shift * estimates, freedom, alpha))

    low, high = 0.0, 1.0
    while found(high) < power:
        high *= 2
    for _ in range(24):
        middle = (low + high) / 2
        low, high = (middle, high) if found(middle) < power else (low, middle)
    return high


def _powers(shifts: np.ndarray, freedom: float, alpha: float) -> np.ndarray:
    """The noncentral t: (Z + shift) / S, integrated over S, for each shift."""
    s, weights = _spreads(freedom)
    reach = t_quantile(1 - alpha / 2, freedom) * s
    shifts = shifts[:, None]
    return sum(np.interp(x, _NORMAL, _NORMAL_CDF) for x in (shifts - reach, -shifts - reach)) @ weights


def _spreads(freedom: float) -> tuple[np.ndarray, np.ndarray]:
    """Estimates S of a standard deviation of 1, where S^2 ~ chi^2 / freedom, and their probabilities."""
    longest = 1 + 8 / math.sqrt(freedom)
    s = longest / 2 * (_NODES + 1)
    half = freedom / 2
    log_density = math.log(2) + half * math.log(half) - math.lgamma(half) + (freedom - 1) * np.log(s)
    return s, longest / 2 * _WEIGHTS * np.exp(log_density - half * s**2)
