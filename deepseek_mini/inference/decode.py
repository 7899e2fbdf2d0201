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
        self.newest_B1 = torch.zeros(n_rows, 1, dtype=torch.int64, device=model.head.weight.device)
        """What `step` reads, always at the same address."""

    def start(self, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        """Read the prompts; the first new tokens of each row."""
        return self._choose(self.read(prompts), [len(prompt) for prompt in prompts])

    def advance(self) -> list[list[int]]:
        """The next tokens of each row."""
        self.newest_B1.copy_(upload([[token] for token in self.newest], self.newest_B1.device))
        return self._draw(self.step())

    def step(self) -> Tensor:
        """Logits `[B, V]` behind `newest_B1`: what a CUDA graph would hold. Nothing in it is the host's.

        The host's own count of the cache goes up too, which a replay would have to do beside it.
        """
        hidden_B1D = self.trunk.extend(self.model.embed(self.newest_B1), [1] * len(self.newest_B1))
        return self.model.head(self.model.norm(hidden_B1D[:, 0]))

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Go on with these rows only."""
        self.trunk.cache.keep_rows(rows)
        self.randoms = [self.randoms[row] for row in rows]
        self.newest = [self.newest[row] for row in rows]
        self.newest_B1 = self.newest_B1[: len(rows)]

    def read(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Hidden states `[B, T, D]` behind new tokens; T is the longest row's number of them."""
        return self.trunk.extend(self.embed(rows), [len(row) for row in rows])

    def embed(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Embeddings `[B, T, D]`, padded on the right."""
        length = max(map(len, rows))
        padded = [[*row, *[0] * (length - len(row))] for row in rows]
        return self.model.embed(upload(padded, self.model.head.weight.device))

    def distribution(self, logits: Tensor) -> Tensor:
        """What to draw the next token from: probabilities `[..., V]` on the CPU."""
        return probabilities(logits.cpu(), self.sampling)

    def _choose(self, hidden_BTD: Tensor, counts: Sequence[int]) -> list[list[int]]:
        normed_BD = self.model.norm(pick(hidden_BTD, [count - 1 for count in counts]))
        return self._draw(self.model.head(normed_BD))

    def _draw(self, logits_BV: Tensor) -> list[list[int]]:
        probs_BV = self.distribution(logits_BV)
        self.newest = [draw(probs_V, random) for probs_V, random in zip(probs_BV, self.randoms, strict=True)]
        return [[token] for token in self.newest]


def pick(x_BTD: Tensor, places: Sequence[int]) -> Tensor:
    """Row i's vector at places[i]: `[B, D]`."""
    rows = torch.arange(len(places), device=x_BTD.device)
    return x_BTD[rows, upload(places, x_BTD.device)]
