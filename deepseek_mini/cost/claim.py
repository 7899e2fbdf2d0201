"""What a claim about DeepSeek-V3 is, and how it is judged."""

from dataclasses import dataclass
from enum import StrEnum


class Topic(StrEnum):
    """In the order of the page."""

    cache = "Key-value cache"
    flops = "Parameters and FLOPs"
    fp8 = "FP8"
    mtp = "Multi-token prediction"
    balance = "Balancing without an auxiliary loss"
    routing = "Node-limited routing"
    bubbles = "Pipeline bubbles"
    cost = "Hours and cost"


class Verdict(StrEnum):
    confirmed = "confirmed"
    corrected = "corrected"
    """A primary source, or arithmetic, has another figure."""
    unsupported = "not supported"
    """No primary source has such a figure, and the model contradicts it."""


@dataclass(frozen=True, slots=True)
class Claim:
    topic: Topic
    claim: str
    claimed: float
    """The number in the claim, in the unit of `model`."""
    verdict: Verdict
    published: str
    """What the primary source says, and which."""
    model: float | None
    """What this model computes; None for what only training can tell."""
    says: str
    """The same in words."""
