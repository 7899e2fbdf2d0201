"""A run small enough for tests: byte tokens, generated text, a model of a few thousand parameters."""

import random
from pathlib import Path

import pytest

from deepseek_mini.compose import load_config
from deepseek_mini.config import Config

WORDS = tuple("the cat sat on a mat while two dogs ran far off into some old green wood".split())  # noqa: SIM905
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "while",
    "two",
    "dogs",
    "ran",
    "far",
    "off",
    "into",
    "some",
    "old",
    "green",
    "wood",
]

SMALL = [
    "data=text_files",
    "data.tokenizer=byte",
    "data.sequence_length=32",
    "data.batch_size=4",
    "precision=fp32",
    "device=cpu",
    "model.vocab_size=257",
    "model.dim=32",
    "model.inter_dim=48",
    "model.moe_inter_dim=16",
    "model.n_layers=2",
    "model.n_heads=2",
    "model.n_routed_experts=8",
    "model.n_activated_experts=2",
    "model.q_lora_rank=16",
    "model.kv_lora_rank=16",
    "model.qk_nope_head_dim=8",
    "model.qk_rope_head_dim=8",
    "model.v_head_dim=8",
    "trainer.eval_sequences=4",
    "trainer.sample_every=0",
    "trainer.log_every=1",
    "trainer.max_steps=12",
    "trainer.save_every=4",
    "trainer.eval_every=6",
]


def write_corpus(folder: Path, n_documents: int = 40, n_words: int = 60) -> Path:
    """Generated text: the same on every machine and version."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = random.Random(7)
    for i in range(n_documents):
        (folder / f"{i:03d}.txt").write_text(" ".join(generator.choices(WORDS, k=n_words)) + f" {i}\n")
    return folder


@pytest.fixture
def small_overrides(tmp_path: Path) -> list[str]:
    corpus = write_corpus(tmp_path / "corpus")
    return [*SMALL, f"data.path='{corpus}/*.txt'", f"data.cache_dir='{tmp_path / 'cache'}'"]


@pytest.fixture
def make_config(small_overrides):
    def make(*overrides: str) -> Config:
        return load_config([*small_overrides, *overrides])

    return make
