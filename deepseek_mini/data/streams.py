"""Documents to one stream of token ids: each document, then EOS, end to end."""

from collections.abc import Iterator

import numpy as np

from deepseek_mini.data.sources import Document
from deepseek_mini.data.tokenizer import Tokenizer

PIECE_CHARACTERS = 2**18
"""Longer documents are tokenised in pieces, so that one large file also keeps every core busy."""
GROUP_PIECES = 64
"""Pieces tokenised at once: the library holds some hundred bytes per token meanwhile."""


def pieces(documents: list[Document]) -> Iterator[tuple[str, bool]]:
    """Parts of documents that together are the documents, and whether each is its document's last."""
    for _, text in documents:
        for start in range(0, len(text), PIECE_CHARACTERS):
            yield text[start : start + PIECE_CHARACTERS], start + PIECE_CHARACTERS >= len(text)


def token_stream(documents: list[Document], tokenizer: Tokenizer) -> np.ndarray:
    """The documents' token ids, each document followed by EOS: uint16 [N], or uint32 for many ids."""
    parts = list(pieces(documents))
    end = np.array([tokenizer.eos_id], tokenizer.dtype)
    chunks = []
    for start in range(0, len(parts), GROUP_PIECES):
        texts, lasts = zip(*parts[start : start + GROUP_PIECES], strict=True)
        for ids, is_last in zip(tokenizer.encode_batch(texts), lasts, strict=True):
            chunks += [ids, end] if is_last else [ids]
    return np.concatenate(chunks)
