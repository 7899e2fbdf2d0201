"""What a GPU-hour costs: rental bands by date, and what it costs somebody who owns the GPU."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deepseek_mini.cost.draws import Triangular
from deepseek_mini.cost.tables import read_table

HOURS_PER_YEAR = 8760


@dataclass(frozen=True, slots=True)
class Price:
    """Dollars per GPU-hour."""

    low: float
    typical: float
    high: float
    date: str
    kind: str
    source: str

    def drawn(self, shares: NDArray[np.float64] | float) -> NDArray[np.float64]:
        """The price at shares of its triangular distribution."""
        return Triangular(self.low, self.typical, self.high).quantile(shares)

    @property
    def text(self) -> str:
        """The band in words; dollars are hours at prices drawn from it."""
        if self.low == self.high:
            return f"${self.low:.2f} per GPU-hour: {self.source}"
        return (
            f"${self.low:.2f} to ${self.high:.2f} per GPU-hour, {self.typical:.2f} most likely, "
            f"{float(self.drawn(0.5)):.2f} in the median: {self.source}"
        )


@dataclass(frozen=True, slots=True)
class Ownership:
    """An owner's cost of one GPU. The defaults are an H100's, with its share of an 8-GPU system left out."""

    purchase: float = 25_000.0
    """Dollars; $33,750 to $41,000 with the system around it (DGX H100, 2023 list prices)."""
    years: float = 3.0
    """Over which the purchase is written off, evenly."""
    use: float = 1.0
    """Share of the hours in which it works; 0.7 to 0.8 is usual."""
    watts: float = 700.0
    """1,280 with the system around it."""
    dollars_per_kwh: float = 0.08
    cooling: float = 0.5
    """Power for cooling, as a share of the GPU's."""
    network: float = 0.0
    """Network and storage, as a share of the purchase; 0.25 is usual."""

    def __post_init__(self) -> None:
        amounts = (self.purchase, self.watts, self.dollars_per_kwh, self.cooling, self.network)
        if min(amounts) < 0 or self.years <= 0 or not 0 < self.use <= 1:
            raise ValueError(
                "an owner's amounts must not be negative, years positive and use between 0 and 1"
            )

    def lines(self) -> dict[str, float]:
        """Dollars per GPU-hour that works, by what they are spent on."""
        hours = self.years * HOURS_PER_YEAR * self.use
        power = self.watts / 1e3 * self.dollars_per_kwh
        return {
            "depreciation": self.purchase / hours,
            "network and storage": self.purchase * self.network / hours,
            "power": power / self.use,
            "cooling": power * self.cooling / self.use,
        }

    @property
    def per_hour(self) -> float:
        return sum(self.lines().values())


OWNERS = {
    "bare H100 card, always busy": Ownership(),
    "bare H100 card, 70% busy": Ownership(use=0.7),
    "8-GPU system, 70% busy": Ownership(37_500, use=0.7, watts=1280),
    "8-GPU system with network, 70% busy": Ownership(37_500, use=0.7, watts=1280, network=0.25),
}
"""Cases of the report; purchase prices as in `Ownership`."""


@dataclass(frozen=True, slots=True)
class Extras:
    """What a bill has beside the run's GPU-hours; the user sets it, none is assumed."""

    staff: float = 0.0
    """Dollars."""
    data: float = 0.0
    """Dollars."""
    failed_runs: float = 0.0
    """GPU-hours of failed runs, as a share of the run's."""
    research: float = 0.0
    """GPU-hours of research and ablations, as a multiple of the run's."""

    def __post_init__(self) -> None:
        for amount in (self.staff, self.data, self.failed_runs, self.research):
            if not 0 <= amount < math.inf:
                raise ValueError(
                    f"--staff, --data, --failed-runs and --research must be 0 or more, not {amount:g}"
                )

    def lines(self, gpu_dollars: float) -> dict[str, float]:
        """Dollars by line, beside `gpu_dollars` of the run itself."""
        return {
            "failed runs": self.failed_runs * gpu_dollars,
            "research": self.research * gpu_dollars,
            "staff": self.staff,
            "data": self.data,
        }


def rental_prices(device: str) -> list[Price]:
    """All rows of a device, oldest first."""
    return [
        Price(
            float(row["low"]),
            float(row["typical"]),
            float(row["high"]),
            row["date"],
            row["kind"],
            row["source"],
        )
        for row in read_table("prices")
        if row["device"] == device
    ]


def price_band(device: str, price: float | None = None) -> Price:
    """The band to compute with: the newest one of the device, or the user's own price.

    Raises ValueError if that is not positive, or if there is neither.
    """
    if price is not None:
        if not 0 < price < math.inf:
            raise ValueError(f"--price={price:g} must be positive: dollars per GPU-hour")
        return Price(price, price, price, "now", "given", "--price")
    bands = [row for row in rental_prices(device) if row.kind == "band"]
    if not bands:
        raise ValueError(f"no rental price of {device} is listed; give --price, dollars per GPU-hour")
    return bands[-1]
