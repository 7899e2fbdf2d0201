"""What every benchmark returns."""

from dataclasses import dataclass


class Unavailable(ValueError):
    """A benchmark that cannot run on this machine, or not with these settings."""


@dataclass(frozen=True, slots=True)
class Result:
    """One line of the table. What could not be measured is None."""

    name: str
    ours: float | None
    peer: float | None
    peer_name: str
    ratio: float | None
    """Above 1, ours is better."""
    unit: str


def compared(
    name: str, ours: float | None, peer: float | None, peer_name: str, unit: str, *, more_is_better: bool
) -> Result:
    """A result with its ratio."""
    ratio = None
    if ours is not None and peer is not None:
        ratio = ours / peer if more_is_better else peer / ours
    return Result(name, ours, peer, peer_name, ratio, unit)
