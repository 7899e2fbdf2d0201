"""Packing: documents laid end to end in one stream of tokens, and sequences cut from it.

Shape letters: B sequences, S tokens of a sequence (sequence_length + 1), N tokens of the stream.

    stream     d0 d0 EOS d1 d1 d1 d1 EOS d2 ...
    sequence 0 [-------]                          sequence_length + 1 tokens; each overlaps the next by one
    sequence 1         [---------]                token, so that all tokens but the first are predicted once
"""

import functools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """Packed sequences: inputs are `tokens_BS[:, :-1]`, labels `tokens_BS[:, 1:]`."""

    tokens_BS: Tensor
    """int64 [B, sequence_length + 1]."""
    documents_BS: Tensor
    """int64, same shape: which document of its row a token belongs to, from 0; a document owns its EOS."""

    def to(self, device: torch.device) -> "Batch":
        """On `device`, without waiting for it: the copy to a GPU is from pinned memory."""
        tensors = (self.tokens_BS, self.documents_BS)
        if device.type == "cuda":
            tensors = tuple(tensor.pin_memory() for tensor in tensors)
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in tensors))

    def split(self, size: int) -> list["Batch"]:
        """Micro-batches of at most `size` sequences, in order."""
        parts = zip(self.tokens_BS.split(size), self.documents_BS.split(size), strict=True)
        return [Batch(tokens, documents) for tokens, documents in parts]


@dataclass(frozen=True, slots=True)
class Split:
    """One side of the corpus as numbered sequences.

    The sequence with index i is a pure function of (stream, seed, i). Indices have no end: the sequences
    are gone through again and again, each time (epoch) in a new order if there is a seed. Without one the
    order is fixed, and each prefix of it is spread evenly over the stream.
    """

    stream_N: np.ndarray
    """Token ids; may be a memory map."""
    eos_id: int
    sequence_length: int
    seed: int | None

    @property
    def n_tokens(self) -> int:
        return len(self.stream_N)

    @property
    def n_sequences(self) -> int:
        """Sequences per epoch; a remainder of the stream shorter than a sequence is left out."""
        return (self.n_tokens - 1) // self.sequence_length

    def batch(self, start: int, size: int) -> Batch:
        """The sequences with indices start to start + size - 1."""
        places = [divmod(index, self.n_sequences) for index in range(start, start + size)]
        sequences_B = np.array([self._order(epoch)[place] for epoch, place in places], dtype=np.int64)
        offsets_BS = sequences_B[:, None] * self.sequence_length + np.arange(self.sequence_length + 1)
        tokens_BS = self.stream_N[offsets_BS].astype(np.int64)
        documents_BS = np.zeros_like(tokens_BS)
        np.cumsum(tokens_BS[:, :-1] == self.eos_id, axis=1, out=documents_BS[:, 1:])
        return Batch(torch.from_numpy(tokens_BS), torch.from_numpy(documents_BS))

    def first_documents(self, start: int, size: int) -> Tensor:
        """int64 [B]: which of the stream's documents each of these sequences begins in."""
        places = [divmod(index, self.n_sequences) for index in range(start, start + size)]
        offsets_B = [int(self._order(epoch)[place]) * self.sequence_length for epoch, place in places]
        ends = np.flatnonzero(self.stream_N == self.eos_id)
        return torch.from_numpy(np.searchsorted(ends, offsets_B))

    def _order(self, epoch: int) -> np.ndarray:
        if self.seed is None:
            return _spread(self.n_sequences)
        return _shuffled(self.n_sequences, self.seed, epoch)


@functools.lru_cache(maxsize=8)
def _shuffled(n: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation by sorting random keys: numpy promises PCG64's raw stream, but not `permutation`."""
    return np.argsort(np.random.PCG64([seed, epoch]).random_raw(n), kind="stable")


@functools.lru_cache(maxsize=8)
def _spread(n: int) -> np.ndarray:
    """Golden-ratio order: those of 0..n-1 that come first lie at almost equal distances, however many."""
    golden = (5**0.5 - 1) / 2
    return np.argsort(np.arange(n) * golden % 1, kind="stable")
