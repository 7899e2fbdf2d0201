"""Decoding one token per row and pass. Legend: B rows, T new tokens, D model width, V vocabulary."""

from collections.abc import Sequence

import torch
from torch import Tensor

from deepseek_mini.inference.blocks import CachedBlocks
from deepseek_mini.inference.cache import upload
from deepseek_mini.inference.sampling import Sampling, draw, probabilities, row_generators
from deepseek_mini.model.transformer import Transformer


class Decoder:
    """A model, its cache, and for each row the newest token, which the cache does not hold yet."""

    def __init__(self, model: Transformer, n_rows: int, capacity: int, sampling: Sampling) -> None:
        self.model = model
        self.sampling = sampling
        self.trunk = CachedBlocks(model.blocks()[: len(model.layers)], model.config, n_rows, capacity)
        self.randoms = row_generators(sampling.seed, n_rows)
        self.newest: list[int] = []

    def start(self, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        """Read the prompts; the first new tokens of each row."""
        return self._choose(self.read(prompts), [len(prompt) for prompt in prompts])

    def advance(self) -> list[list[int]]:
        """The next tokens of each row."""
        rows = [[token] for token in self.newest]
        return self._choose(self.read(rows), [1] * len(rows))

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Go on with these rows only."""
        self.trunk.cache.keep_rows(rows)
        self.randoms = [self.randoms[row] for row in rows]
        self.newest = [self.newest[row] for row in rows]

    def read(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Hidden states `[B, T, D]` behind new tokens; T is the longest row's number of them."""
        return self.trunk.extend(self.embed(rows), [len(row) for row in rows])

    def embed(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Embeddings `[B, T, D]`, padded on the right."""
        length = max(map(len, rows))
        padded = [[*row, *[0] * (length - len(row))] for row in rows]
        return self.model.embed(upload(padded, self.model.head.weight.device))

    def distribution(self, normed: Tensor) -> Tensor:
        """What to draw the next token from after normed hidden states `[..., D]`: `[..., V]`, on the CPU."""
        return probabilities(self.model.head(normed).cpu(), self.sampling)

    def _choose(self, hidden_BTD: Tensor, counts: Sequence[int]) -> list[list[int]]:
        probs_BV = self.distribution(self.model.norm(pick(hidden_BTD, [count - 1 for count in counts])))
        self.newest = [draw(probs_V, random) for probs_V, random in zip(probs_BV, self.randoms, strict=True)]
        return [[token] for token in self.newest]


def pick(x_BTD: Tensor, places: Sequence[int]) -> Tensor:
    """Row i's vector at places[i]: `[B, D]`."""
    rows = torch.arange(len(places), device=x_BTD.device)
    return x_BTD[rows, upload(places, x_BTD.device)]
