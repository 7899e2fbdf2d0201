import random
from collections.abc import Callable
from pathlib import Path

import pytest

from deepseek_mini.config import DataConfig, Source

WORDS = ["model", "expert", "router", "token", "layer", "gate", "loss", "Stra\u00dfe", "\u6a21\u578b", "2024"]


@pytest.fixture
def write_corpus(tmp_path: Path) -> Callable[..., DataConfig]:
    """Writes `n` small text files and returns a config that reads them, with a cache of its own."""

    def write(n: int = 60, words: int = 40, **settings: object) -> DataConfig:
        folder = tmp_path / "corpus"
        folder.mkdir(exist_ok=True)
        for i in range(n):
            text = " ".join(random.Random(i).choices(WORDS, k=words))
            (folder / f"{i}.txt").write_text(f"{i}: {text}.\n", encoding="utf-8")
        defaults = {"validation_fraction": 0.3, "sequence_length": 16, "tokenizer": "byte"}
        return DataConfig(
            source=Source.text_files,
            path=f"{folder}/*.txt",
            cache_dir=str(tmp_path / "cache"),
            **(defaults | settings),  # type: ignore[arg-type]
        )

    return write
