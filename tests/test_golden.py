"""The golden runs: steps of model=tiny with each optimizer whose losses no refactoring may change.

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
    "optimizer.lr=3e-4",
    "precision=fp32",
    "device=cpu",
    "trainer.log_every=1",
    "trainer.eval_every=20",
    "trainer.eval_sequences=4",
    "trainer.sample_every=0",
    "trainer.save_every=20",
]
STEPS = {"adamw": 20, "muon": 5}


def golden_losses(folder: Path, optimizer: str) -> list[float]:
    corpus = write_corpus(folder / "corpus", n_documents=60, n_words=80)
    own = [f"data.path='{corpus}/*.txt'", f"data.cache_dir='{folder / 'cache'}'"]
    own += [f"optimizer={optimizer}", f"trainer.max_steps={STEPS[optimizer]}"]
    assert run(load_config([*OVERRIDES, *own]), folder / optimizer, []) == 0
    return [row["train/loss"] for row in run_files.read_metrics(folder / optimizer)]


@pytest.mark.parametrize("optimizer", STEPS)
def test_the_first_steps_of_tiny_give_the_golden_losses(tmp_path, optimizer):
    golden = json.loads(GOLDEN.read_text())[optimizer]
    assert golden_losses(tmp_path, optimizer) == pytest.approx(golden, rel=1e-5)


def test_the_golden_run_does_not_hang_on_the_number_of_threads(tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if threads > 1 else 2)
    try:
        losses = golden_losses(tmp_path, "adamw")
    finally:
        torch.set_num_threads(threads)
    assert losses == pytest.approx(json.loads(GOLDEN.read_text())["adamw"], rel=1e-5)


if __name__ == "__main__":
    golden = {optimizer: golden_losses(Path(sys.argv[1]), optimizer) for optimizer in STEPS}
    GOLDEN.write_text(json.dumps(golden, indent=0) + "\n")
