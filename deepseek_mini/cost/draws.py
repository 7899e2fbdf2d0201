"""Draws of what is not known: each quantity of `data/run_priors.csv` is triangular between its bounds.

A set of draws is an array per name, all of one length; whatever is computed from it is then an array too.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deepseek_mini.cost.layout import LAYOUTS, MIDDLE_LAYOUT
from deepseek_mini.cost.tables import read_table

Draws = dict[str, NDArray[np.float64]]

LAYOUT = "layout"
"""The index of a candidate in `LAYOUTS`, each as likely."""


@dataclass(frozen=True, slots=True)
class Triangular:
    low: float
    mode: float
    high: float

    def quantile(self, share: NDArray[np.float64] | float) -> NDArray[np.float64]:
        """Inverse of the distribution function; a band without width is its value."""
        width = self.high - self.low
        share = np.asarray(share, dtype=np.float64)
        if not width:
            return np.full_like(share, self.mode)
        left = self.mode - self.low
        rising = self.low + np.sqrt(share * width * left)
        falling = self.high - np.sqrt((1 - share) * width * (self.high - self.mode))
        return np.where(share < left / width, rising, falling)


def run_priors() -> dict[str, Triangular]:
    return {
        row["name"]: Triangular(float(row["low"]), float(row["mode"]), float(row["high"]))
        for row in read_table("run_priors")
    }


def sample(priors: dict[str, Triangular], n: int, seed: int = 0) -> Draws:
    """`n` draws of everything, independent of each other."""
    rng = np.random.default_rng(seed)
    draws = {name: prior.quantile(rng.random(n)) for name, prior in priors.items()}
    draws[LAYOUT] = (np.arange(n) % len(LAYOUTS)).astype(np.float64)
    return draws


def central(priors: dict[str, Triangular]) -> Draws:
    """A single draw with every median, and the middle candidate for the layout."""
    draws = {name: prior.quantile(np.array([0.5])) for name, prior in priors.items()}
    return draws | {LAYOUT: np.array([float(LAYOUTS.index(MIDDLE_LAYOUT))])}


def one_at_a_time(priors: dict[str, Triangular]) -> tuple[list[str], Draws]:
    """For a tornado: two draws per name, at its P10 and its P90, all else at the median.

    The layout's two are the other candidates. Returns the names, in the order of the pairs.
    """
    middle, names = central(priors), [*priors, LAYOUT]
    draws = {name: np.repeat(values, 2 * len(names)) for name, values in middle.items()}
    for index, name in enumerate(names):
        ends = priors[name].quantile(np.array([0.1, 0.9])) if name in priors else _other_layouts()
        draws[name][2 * index : 2 * index + 2] = ends
    return names, draws


def _other_layouts() -> NDArray[np.float64]:
    return np.array([float(i) for i, name in enumerate(LAYOUTS) if name != MIDDLE_LAYOUT])


def band(values: NDArray[np.float64]) -> dict[str, float]:
    """P10, P50 and P90."""
    return dict(zip(("p10", "p50", "p90"), map(float, np.quantile(values, [0.1, 0.5, 0.9])), strict=True))
