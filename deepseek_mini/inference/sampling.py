"""How the next token is chosen. Legend: V vocabulary; `...` any leading dimensions."""

from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Sampling:
    """The distribution to draw from: temperature first, then top-k, then top-p."""

    temperature: float = 0.8
    """Logits are divided by it; 0 takes the likeliest token."""
    top_k: int | None = None
    """Draw from the k likeliest tokens only."""
    top_p: float = 1.0
    """Draw from the fewest likeliest tokens that together have at least this probability."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(
                f"temperature {self.temperature}: must not be negative; 0 is the likeliest token"
            )
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top-k {self.top_k}: must be at least 1; leave it out for all tokens")
        if not 0 < self.top_p <= 1:
            raise ValueError(
                f"top-p {self.top_p}: must be above 0 and at most 1, which draws from all tokens"
            )


def probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """What to draw from: float64 `[..., V]`. Temperature 0 puts everything on the likeliest token.

    Raises ValueError for logits that are not finite.
    """
    if not logits.isfinite().all():
        raise ValueError("the model's logits are not finite: its weights are damaged, or it diverged")
    logits = logits.double()
    if sampling.temperature == 0:
        return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
    logits = (logits - logits.amax(-1, keepdim=True)) / sampling.temperature  # however small that is
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        least = logits.topk(sampling.top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    probs = logits.softmax(-1)
    if sampling.top_p < 1:
        sorted_probs, order = probs.sort(dim=-1, descending=True, stable=True)
        likelier = sorted_probs.cumsum(-1) - sorted_probs
        dropped = torch.zeros_like(probs, dtype=torch.bool).scatter_(-1, order, likelier >= sampling.top_p)
        probs = probs.masked_fill(dropped, 0.0)
        probs /= probs.sum(-1, keepdim=True)
    return probs


def row_generators(seed: int, n_rows: int) -> list[Random]:
    """A generator for each row, so that what one row draws does not depend on the others."""
    return [Random(f"{seed}:{row}") for row in range(n_rows)]


def draw(weights_V: Tensor, random: Random) -> int:
    """A token with the probability that its share of the weights gives it; never one with the weight 0."""
    sums_V = weights_V.cumsum(-1)
    sums_V /= sums_V[-1].clone()
    return int(torch.searchsorted(sums_V, random.random(), right=True))
