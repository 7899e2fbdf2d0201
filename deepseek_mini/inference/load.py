"""A model from the checkpoint of a run, or of an import that looks like one."""

from pathlib import Path

import torch

from deepseek_mini import run_files
from deepseek_mini.config import ModelConfig
from deepseek_mini.cost.hardware import choose_device
from deepseek_mini.data import Tokenizer, load_tokenizer
from deepseek_mini.model.transformer import Transformer, build_on_meta
from deepseek_mini.tensor_files import load_weights, read_tensors


def load_run(run_dir: Path) -> tuple[Transformer, Tokenizer]:
    """The newest checkpoint's model, on the run's kind of device, and its tokenizer.

    Raises ValueError naming the file that is missing, damaged or not of this model.
    """
    config = run_files.read_config(run_dir)
    tokenizer = load_tokenizer(run_dir / run_files.TOKENIZER)
    device, _ = choose_device(config.device)
    return load_model(run_dir, config.model, device), tokenizer


def load_model(run_dir: Path, config: ModelConfig, device: torch.device) -> Transformer:
    """The newest checkpoint's weights, float32. Raises ValueError if there is none or it is damaged."""
    checkpoint = run_files.latest_checkpoint(run_dir / run_files.CHECKPOINTS)
    if checkpoint is None:
        raise ValueError(
            f"{run_dir / run_files.CHECKPOINTS}: no checkpoint yet; let the run reach its first one"
        )
    model = build_on_meta(config)
    model.to_empty(device=device)
    path = checkpoint / "model.safetensors"
    load_weights(model, read_tensors(path, device), path)
    return model.eval()
