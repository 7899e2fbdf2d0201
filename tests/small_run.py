"""A run small enough for tests: byte tokens, generated text, a model of a few thousand parameters."""

import random
from collections.abc import Iterable
from pathlib import Path

WORDS = tuple("the cat sat on a mat while two dogs ran far off into some old green wood".split())  # noqa: SIM905

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


def merge(overrides: Iterable[str], later: Iterable[str]) -> list[str]:
    """Each key once, the later one's value."""
    return list({text.partition("=")[0]: text for text in [*overrides, *later]}.values())
