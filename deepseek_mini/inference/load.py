"""A model from the checkpoint of a run."""

from pathlib import Path

import torch

from deepseek_mini import run_files
from deepseek_mini.config import ModelConfig
from deepseek_mini.model.transformer import Transformer, build_on_meta
from deepseek_mini.tensor_files import load_weights, read_tensors


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
