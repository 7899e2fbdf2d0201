"""Tokens to text while they come."""

from collections.abc import Iterable

from deepseek_mini.data import Tokenizer

LONGEST_CHARACTER = 4
"""Bytes, and so the most tokens that one character can take."""


class TextStream:
    """Decodes tokens as they come, and holds back those at the end that make no whole character yet."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._pending: list[int] = []

    def feed(self, tokens: Iterable[int]) -> str:
        """The text that is whole now."""
        self._pending += tokens
        for n_held in range(min(LONGEST_CHARACTER, len(self._pending) + 1)):
            whole = len(self._pending) - n_held
            text = self._tokenizer.decode(self._pending[:whole])
            if not text.endswith("\ufffd"):
                self._pending = self._pending[whole:]
                return text
        return self.flush()

    def flush(self) -> str:
        """What is left, whole or not."""
        text = self._tokenizer.decode(self._pending)
        self._pending = []
        return text
