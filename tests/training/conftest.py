"""Fixtures of a small run."""

from pathlib import Path

import pytest

from deepseek_mini.compose import load_config
from deepseek_mini.config import Config
from small_run import SMALL, merge, write_corpus


@pytest.fixture
def small_overrides(tmp_path: Path) -> list[str]:
    corpus = write_corpus(tmp_path / "corpus")
    return [*SMALL, f"data.path='{corpus}/*.txt'", f"data.cache_dir='{tmp_path / 'cache'}'"]


@pytest.fixture
def make_config(small_overrides):
    def make(*overrides: str) -> Config:
        return load_config(merge(small_overrides, overrides))

    return make
