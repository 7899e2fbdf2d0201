"""Checkpoints: safetensors and JSON, complete or absent.

checkpoints/
  step_00000200/
    model.safetensors        weights and gate biases, float32
    optimizer.safetensors    moments, by parameter name
    state.json               where the run stands
  latest                     name of the newest one, moved last
"""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from deepseek_mini import run_files
from deepseek_mini.optim.muon import Muon
from deepseek_mini.run_files import list_checkpoints
from deepseek_mini.tensor_files import load_weights, other_way, read_tensors


@dataclass(slots=True)
class RunState:
    """Where a run stands: `step` optimizer steps are done, `sequences` sequences consumed."""

    step: int
    sequences: int
    corpus_hash: str


def save_checkpoint(
    directory: Path,
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    state: RunState,
    metrics: dict[str, Any],
    keep: int,
) -> Path:
    """Write `directory/step_*`, with the step's metrics, and move `latest` to it; keep the newest `keep`.

    Everything is written beside its place and renamed when complete, so a kill at any moment leaves the
    earlier checkpoints as they were. Raises OSError, after removing what was half-written, if the disk
    is full or cannot be written.
    """
    final = directory / f"{run_files.CHECKPOINT_PREFIX}{state.step:08d}"
    partial = directory / f".{final.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        save_file(_contiguous(model.state_dict()), partial / "model.safetensors")
        save_file(_contiguous(optimizer_tensors(model, optimizers)), partial / "optimizer.safetensors")
        (partial / "state.json").write_text(
            json.dumps({**asdict(state), "metrics": metrics}, indent=1) + "\n"
        )
        for path in partial.iterdir():
            _sync(path)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)
        _sync(directory)
        _write_latest(directory, final.name)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise OSError(f"cannot write the checkpoint {final}: {error}") from error
    for old in [p for p in list_checkpoints(directory) if p.name <= final.name][:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def load_checkpoint(
    path: Path, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], device: torch.device
) -> tuple[RunState, dict[str, Any]]:
    """Restore weights, gate biases and moments; returns where the run stood and that step's metrics.

    Raises ValueError naming the file, and the tensor, if it is missing, damaged or of another model.
    """
    weights = read_tensors(path / "model.safetensors", device)
    moments = read_tensors(path / "optimizer.safetensors", device)
    state, metrics = read_state(path)
    load_weights(model, weights, path / "model.safetensors")
    expected = set(optimizer_tensors(model, optimizers, fresh=True))
    if expected != set(moments):
        odd = sorted(expected ^ set(moments))[0]
        raise ValueError(
            f"{path / 'optimizer.safetensors'}: {odd} does not fit optimizer.name; {other_way(path)}"
        )
    restore_moments(model, optimizers, moments)
    return state, metrics


def read_state(path: Path) -> tuple[RunState, dict[str, Any]]:
    try:
        content = json.loads((path / "state.json").read_text())
        metrics = content.pop("metrics")
        return RunState(**content), metrics
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path / 'state.json'}: missing or damaged ({error}); {other_way(path)}") from error


def optimizer_tensors(
    model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], fresh: bool = False
) -> dict[str, Tensor]:
    """The optimizers' tensors as `<parameter>/<key>`. With `fresh`, of a state that may not exist yet."""
    names = {id(p): n for n, p in model.named_parameters()}
    tensors = {}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                state = _empty_state(optimizer, parameter) if fresh else optimizer.state[parameter]
                tensors |= {f"{names[id(parameter)]}/{key}": value for key, value in state.items()}
    return tensors


def restore_moments(
    model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], moments: dict[str, Tensor]
) -> None:
    names = {id(p): n for n, p in model.named_parameters()}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                name = names[id(parameter)]
                dtype = getattr(optimizer, "moment_dtype", None) or parameter.dtype
                own = {key: moments[f"{name}/{key}"] for key in _empty_state(optimizer, parameter)}
                optimizer.state[parameter] = {
                    key: value if key == "step" else value.to(dtype) for key, value in own.items()
                }


def _empty_state(optimizer: torch.optim.Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    keys = ("momentum",) if isinstance(optimizer, Muon) else ("step", "exp_avg", "exp_avg_sq")
    return dict.fromkeys(keys, parameter)


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def _write_latest(directory: Path, name: str) -> None:
    partial = directory / ".latest.partial"
    partial.write_text(name + "\n")
    _sync(partial)
    os.replace(partial, directory / "latest")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
