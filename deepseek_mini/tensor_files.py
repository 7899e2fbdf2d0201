"""Reading tensors from disk: safetensors only, and errors that name the file, the tensor and the way out."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from deepseek_mini.run_files import list_checkpoints


def load_weights(model: nn.Module, weights: dict[str, Tensor], source: Path) -> None:
    """Copy weights into the model; ValueError naming `source` and the first tensor that does not fit."""
    own = model.state_dict()
    for name in sorted(own.keys() | weights.keys()):
        if name not in weights:
            raise ValueError(f"{source}: tensor {name} is missing; it is a checkpoint of another model")
        if name not in own:
            raise ValueError(f"{source}: tensor {name} is not part of this model; check the model.* keys")
        if own[name].shape != weights[name].shape:
            raise ValueError(
                f"{source}: tensor {name} has shape {list(weights[name].shape)}, this model's is "
                f"{list(own[name].shape)}; check the model.* keys"
            )
    model.load_state_dict(weights)


def read_tensors(path: Path, device: torch.device) -> dict[str, Tensor]:
    """All tensors of a checkpoint's file; ValueError naming the file if it is missing or damaged."""
    with open_tensors(path, other_way(path.parent), device) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@contextmanager
def open_tensors(path: Path, advice: str, device: torch.device | str = "cpu") -> Iterator[safe_open]:
    """A safetensors file to read from. Raises ValueError naming the file and `advice`, also while reading."""
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            yield file
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such file; {advice}") from error
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: damaged or not a safetensors file ({error}); {advice}") from error


def other_way(checkpoint: Path) -> str:
    """What to do about a bad checkpoint: the newest earlier one, or a fresh start."""
    earlier = [p for p in list_checkpoints(checkpoint.parent) if p.name < checkpoint.name]
    if earlier:
        return f"go on from an earlier one with resume={earlier[-1]}"
    return "no earlier checkpoint is there: choose another run_dir to start afresh"
