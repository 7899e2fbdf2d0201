"""The golden run: 20 steps of model=tiny whose losses no refactoring may change.

A deliberate change of the numerics shows here. `python tests/test_golden.py FOLDER` writes the new
losses, made in an empty folder; the commit says why they moved.
"""

import json
import sys
from pathlib import Path

import pytest
import torch

from deepseek_mini import run_files
from deepseek_mini.compose import load_config
from deepseek_mini.training.trainer import run
from small_run import write_corpus

GOLDEN = Path(__file__).with_name("golden_losses.json")
OVERRIDES = [
    "model=tiny",
    "data=text_files",
    "data.tokenizer=byte",
    "data.sequence_length=64",
    "data.batch_size=4",
    "optimizer=adamw",
    "optimizer.lr=3e-4",
    "precision=fp32",
    "device=cpu",
    "trainer.max_steps=20",
    "trainer.log_every=1",
    "trainer.eval_every=20",
    "trainer.eval_sequences=4",
    "trainer.sample_every=0",
    "trainer.save_every=20",
]


def golden_losses(folder: Path) -> list[float]:
    corpus = write_corpus(folder / "corpus", n_documents=60, n_words=80)
    paths = [f"data.path='{corpus}/*.txt'", f"data.cache_dir='{folder / 'cache'}'"]
    assert run(load_config([*OVERRIDES, *paths]), folder / "run", []) == 0
    return [row["train/loss"] for row in run_files.read_metrics(folder / "run")]


def test_twenty_steps_of_tiny_give_the_golden_losses(tmp_path):
    assert golden_losses(tmp_path) == pytest.approx(json.loads(GOLDEN.read_text()), rel=1e-5)


def test_the_golden_run_does_not_hang_on_the_number_of_threads(tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if threads > 1 else 2)
    try:
        losses = golden_losses(tmp_path)
    finally:
        torch.set_num_threads(threads)
    assert losses == pytest.approx(json.loads(GOLDEN.read_text()), rel=1e-5)


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(golden_losses(Path(sys.argv[1])), indent=0) + "\n")
