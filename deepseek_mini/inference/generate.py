"""Text from a model: many prompts at once, on a cache, drawn or greedy, plain or speculative."""

import time
from collections.abc import Collection, Iterator, Sequence

import torch

from deepseek_mini.inference.decode import Decoder
from deepseek_mini.inference.sampling import Sampling
from deepseek_mini.inference.speculative import SpeculativeDecoder
from deepseek_mini.model.transformer import Transformer


class Generation:
    """Texts in the making: iterate for the new tokens of every row, pass by pass.

    A row ends at a token of `stop`, which it leaves out, after `max_new_tokens`, or at the model's
    `max_seq_len`. Rows do not disturb each other: each has its own positions, and draws from a generator of
    its own.

    Raises ValueError for an empty prompt, one that leaves no room within `max_seq_len`, a token that the
    model lacks, speculation without MTP, or, while it is iterated, logits that are not finite.
    """

    def __init__(
        self,
        model: Transformer,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        sampling: Sampling,
        stop: Collection[int] = (),
        speculative: bool = False,
    ) -> None:
        longest = model.config.max_seq_len
        check(prompts, max_new_tokens, longest, model.config.vocab_size)
        self.stop = frozenset(stop)
        self.prompts = prompts
        self.room = [min(max_new_tokens, longest - len(prompt)) for prompt in prompts]
        """How many tokens each row may still get."""
        capacity = max(len(prompt) + room for prompt, room in zip(prompts, self.room, strict=True))
        kind = SpeculativeDecoder if speculative else Decoder
        self.decoder = kind(model, len(prompts), capacity, sampling)
        self._decoded, self._seconds = 0, 0.0

    @torch.inference_mode()
    def __iter__(self) -> Iterator[list[list[int]]]:
        rows = list(range(len(self.prompts)))
        found = self.decoder.start(self.prompts)
        while True:
            new: list[list[int]] = [[] for _ in self.prompts]
            for row, tokens in zip(rows, found, strict=True):
                new[row] = self._take(row, tokens)
            if self._seconds:
                self._decoded += sum(map(len, new))
            yield new
            still = [place for place, row in enumerate(rows) if self.room[row]]
            if not still:
                return
            if len(still) < len(rows):
                self.decoder.keep_rows(still)
                rows = [rows[place] for place in still]
            begin = time.perf_counter()
            found = self.decoder.advance()
            self._seconds += time.perf_counter() - begin

    def _take(self, row: int, tokens: list[int]) -> list[int]:
        """As many of the tokens as belong to the row."""
        tokens = tokens[: self.room[row]]
        self.room[row] -= len(tokens)
        ends = [place for place, token in enumerate(tokens) if token in self.stop]
        if ends:
            self.room[row] = 0
            return tokens[: ends[0]]
        return tokens

    @property
    def tokens_per_second(self) -> float | None:
        """Of all rows, without the reading of the prompts; None before the second pass."""
        return self._decoded / self._seconds if self._seconds else None

    @property
    def acceptance_rate(self) -> float | None:
        """Share of the drafts that were kept so far; None without speculation, or before the first."""
        decoder = self.decoder
        if not isinstance(decoder, SpeculativeDecoder) or not decoder.drafted:
            return None
        return decoder.accepted / decoder.drafted


def generate(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: Sampling,
    stop: Collection[int] = (),
    speculative: bool = False,
) -> list[list[int]]:
    """New token ids of each prompt. Arguments and errors as for `Generation`."""
    rows: list[list[int]] = [[] for _ in prompts]
    for new in Generation(model, prompts, max_new_tokens, sampling, stop, speculative):
        for row, tokens in zip(rows, new, strict=True):
            row += tokens
    return rows


def check(prompts: Sequence[Sequence[int]], max_new_tokens: int, max_seq_len: int, vocab_size: int) -> None:
    """Raise ValueError for what cannot be continued."""
    if max_new_tokens < 1:
        raise ValueError(f"max-new-tokens {max_new_tokens}: ask for at least 1")
    if not prompts:
        raise ValueError("there is no prompt: give at least one")
    for prompt in prompts:
        if not prompt:
            raise ValueError("the prompt is empty: give at least one token of text")
        if len(prompt) >= max_seq_len:
            raise ValueError(
                f"the prompt has {len(prompt)} tokens, which leaves no room within model.max_seq_len="
                f"{max_seq_len}: shorten it"
            )
        stranger = next((token for token in prompt if not 0 <= token < vocab_size), None)
        if stranger is not None:
            raise ValueError(
                f"the prompt has token {stranger}, the model's are 0 to {vocab_size - 1}: take the tokenizer "
                "that it was trained with"
            )
