"""`build_data`: from a DataConfig to everything that a run needs of its data."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from deepseek_mini.config import DataConfig, Source
from deepseek_mini.data.cache import Announce, cache_folder, cached
from deepseek_mini.data.corpus import Corpus, build_corpus
from deepseek_mini.data.packing import Split
from deepseek_mini.data.sources import Document, read_text
from deepseek_mini.data.streams import pieces, token_stream
from deepseek_mini.data.tokenizer import (
    SMALLEST_VOCABULARY,
    Tokenizer,
    bpe_rules,
    byte_tokenizer,
    load_tokenizer,
    train_bpe,
)

Prompts = tuple[str, str, str]

PYTHON_PROMPTS: Prompts = (
    'def read_lines(path):\n    """',
    "import os\nimport sys\n\n\nclass ",
    "    for name in sorted(",
)
PROMPT_WORDS = 8
PROMPT_CHARACTERS = 80
"""Also ends a prompt in text that is written without spaces."""


@dataclass(frozen=True, slots=True)
class Data:
    """The tokenised corpus, and what is known of it."""

    tokenizer: Tokenizer
    train: Split
    validation: Split
    validation_names: list[str]
    """Of the held-out documents, in the order of their stream."""
    corpus_hash: str
    description: str
    """One line: source, documents, MB, tokens."""
    prompts: Prompts
    """Beginnings of the samples that are taken while training."""
    token_bytes_V: Tensor
    """int64 [vocab_size]: bytes of text that each token stands for, 0 for EOS; for bits per byte."""


def build_data(config: DataConfig, vocab_size: int, seed: int, announce: Announce) -> Data:
    """Read the corpus, and its tokenizer and token streams from the cache, where they are made once.

    The whole corpus is read and hashed on every start, so `corpus_hash` is that of the text at hand.
    `vocab_size` is the number of rows of the embedding, `seed` that of the shuffle. `announce` gets a line
    for whatever takes long or was chosen automatically.

    Raises ValueError, naming the key or file and the fix, for every fault in the user's text or settings.
    """
    corpus = build_corpus(config.source, read_text(config), config.validation_fraction, announce)
    for side, documents in (("training", corpus.train), ("held-out", corpus.validation)):
        most = sum(len(text.encode()) + 1 for _, text in documents)  # a token has a byte at least, EOS none
        _require_a_sequence(side, "at most ", most, config.sequence_length)
    folder = cache_folder(config.cache_dir)
    tokenizer = _tokenizer(config.tokenizer, vocab_size, corpus, folder, announce)
    name = f"tokens-{corpus.hash}-{tokenizer.identity()}"
    train_N = _cached_stream(folder / f"{name}-train.npy", corpus.train, tokenizer, announce)
    validation_N = _cached_stream(folder / f"{name}-validation.npy", corpus.validation, tokenizer, announce)
    train = Split(train_N, tokenizer.eos_id, config.sequence_length, seed)
    validation = Split(validation_N, tokenizer.eos_id, config.sequence_length, seed=None)
    _require_a_sequence("training", "", train.n_tokens, config.sequence_length)
    _require_a_sequence("held-out", "", validation.n_tokens, config.sequence_length)
    return Data(
        tokenizer=tokenizer,
        train=train,
        validation=validation,
        validation_names=[document.name for document in corpus.validation],
        corpus_hash=corpus.hash,
        description=_describe(corpus, train, validation),
        prompts=PYTHON_PROMPTS if config.source is Source.python else _first_words(corpus.validation),
        token_bytes_V=_token_bytes(tokenizer, vocab_size),
    )


def _tokenizer(choice: str, vocab_size: int, corpus: Corpus, folder: Path, announce: Announce) -> Tokenizer:
    if choice in ("bpe", "byte"):
        if vocab_size < SMALLEST_VOCABULARY:
            raise ValueError(
                f"model.vocab_size={vocab_size} is too small for data.tokenizer={choice}: 256 bytes and the "
                f"end-of-document token need model.vocab_size>={SMALLEST_VOCABULARY}"
            )
        return byte_tokenizer() if choice == "byte" else _cached_bpe(vocab_size, corpus, folder, announce)
    try:
        tokenizer = load_tokenizer(Path(choice).expanduser())
    except ValueError as error:
        raise ValueError(
            f"data.tokenizer={choice} is neither bpe, byte nor a usable file: {error}"
        ) from error
    if tokenizer.size > vocab_size:
        raise ValueError(
            f"data.tokenizer={choice} has {tokenizer.size} ids, more than model.vocab_size={vocab_size}; "
            f"set model.vocab_size={tokenizer.size} or more, or take a smaller tokenizer"
        )
    return tokenizer


def _cached_bpe(vocab_size: int, corpus: Corpus, folder: Path, announce: Announce) -> Tokenizer:
    def train() -> bytes:
        announce(f"data: training the tokenizer on {_megabytes(corpus.train)} (once; kept in {folder})")
        return train_bpe((text for text, _ in pieces(corpus.train)), vocab_size).to_json().encode()

    path = folder / f"tokenizer-{corpus.hash}-{vocab_size}-{bpe_rules()}.json"
    return load_tokenizer(cached(path, lambda file: file.write(train()), announce))


def _cached_stream(
    path: Path, documents: list[Document], tokenizer: Tokenizer, announce: Announce
) -> np.ndarray:
    def tokenise() -> np.ndarray:
        announce(f"data: tokenising {_megabytes(documents)} (once; kept in {path.parent})")
        return token_stream(documents, tokenizer)

    return np.load(cached(path, lambda file: np.save(file, tokenise()), announce), mmap_mode="r")


def _require_a_sequence(side: str, bound: str, n_tokens: int, length: int) -> None:
    if n_tokens <= length:
        fix = "raise data.validation_fraction" if side == "held-out" else "give more text (data.path)"
        raise ValueError(
            f"the {side} text has {bound}{n_tokens} tokens, and one sequence of data.sequence_length="
            f"{length} needs {length + 1}; lower data.sequence_length or {fix}"
        )


def _token_bytes(tokenizer: Tokenizer, vocab_size: int) -> Tensor:
    token_bytes_V = torch.zeros(vocab_size, dtype=torch.int64)
    token_bytes_V[: tokenizer.size] = torch.tensor(tokenizer.token_bytes())
    return token_bytes_V


def _first_words(documents: list[Document]) -> Prompts:
    """The first words of three documents; where there are fewer, of their later thirds as well."""
    first, second, third = (
        _words(documents[i % len(documents)].text, third=i // len(documents)) for i in range(3)
    )
    return first, second, third


def _words(text: str, third: int) -> str:
    words = text.split()
    start = len(words) * third // 3
    return " ".join(words[start : start + PROMPT_WORDS])[:PROMPT_CHARACTERS]


def _megabytes(documents: list[Document]) -> str:
    return f"{sum(len(text.encode()) for _, text in documents) / 1e6:.2f} MB"


def _describe(corpus: Corpus, train: Split, validation: Split) -> str:
    sides = (("train", corpus.train, train), ("held out", corpus.validation, validation))
    counts = [
        f"{side} {len(documents)} documents, {_megabytes(documents)}, {split.n_tokens:,} tokens"
        for side, documents, split in sides
    ]
    return f"{corpus.label}: {'; '.join(counts)}; corpus {corpus.hash}"
