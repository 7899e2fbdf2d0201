"""Start a kernel in one of its production configurations."""

import contextlib
import importlib
from typing import Any

import torch
from torch import Tensor

from deepseek_mini_kernels.configs import Launch

ALIGNMENT = 16
"""Bytes (pointers) and elements (sizes) that the compiler is promised."""


def launch(config: Launch, grid: tuple[int, ...], problem: dict[str, float | str], **arguments) -> None:
    """Run `config`'s kernel on `grid`; does nothing if the grid is empty.

    Arguments and constants must be those of the table: what runs is what was checked.
    """
    assert list(arguments) == list(config.types), (config.name, list(arguments))
    assert set(problem) == set(config.problem), (config.name, problem)
    if 0 in grid:
        return
    constants = {**config.tile, **problem}
    device = next(value for value in arguments.values() if isinstance(value, Tensor)).device
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        load(config)[grid](**arguments, **constants, num_warps=config.num_warps, num_stages=config.num_stages)


def aligned(*values: Tensor | int) -> bool:
    """Whether these tensors start at, and these sizes are, multiples of 16."""
    return all((v.data_ptr() if isinstance(v, Tensor) else v) % ALIGNMENT == 0 for v in values)


def load(config: Launch) -> Any:
    """The kernel of a configuration; imports triton."""
    module = importlib.import_module(f"deepseek_mini_kernels.{config.module}")
    return getattr(module, config.kernel)
