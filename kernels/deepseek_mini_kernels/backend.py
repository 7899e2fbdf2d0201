"""Which implementation of an op runs: `naive` (plain torch, anywhere) or `triton` (Hopper and later)."""

import functools
import importlib.util
import logging
import os
from typing import Literal

import torch
from torch import Tensor

log = logging.getLogger("deepseek_mini_kernels")

Backend = Literal["auto", "naive", "triton"]
"""auto: triton where it can run on a GPU, else naive, announced once on the log."""

HOPPER = (9, 0)
SMALL_BLOCKS = 12
"""Major compute capability of GeForce's Blackwell, whose blocks have 99 KiB of shared memory."""


def choose(x: Tensor, backend: Backend = "auto") -> Literal["naive", "triton"]:
    """The backend for an op on `x`. Raises ValueError if `triton` is asked for where it cannot run."""
    if backend == "naive":
        return "naive"
    obstacle = why_not_triton(x.device)
    if backend == "triton":
        if obstacle:
            raise ValueError(f"kernels: backend=triton cannot run: {obstacle}; use backend=naive or auto")
        return "triton"
    if backend != "auto":
        raise ValueError(f"kernels: backend={backend!r} is unknown; there are auto, naive and triton")
    name = "naive" if obstacle or x.device.type == "cpu" else "triton"
    _announce(name, x.device.type, obstacle)
    return name


def why_not_triton(device: torch.device) -> str | None:
    """Why the Triton kernels cannot run on this device; None if they can."""
    if not has_triton():
        return "triton is not installed (pip install triton)"
    if device.type == "cpu":
        return None if interpreting() else "the tensors are on the CPU (TRITON_INTERPRET=1 simulates, slowly)"
    if device.type != "cuda":
        return f"the tensors are on {device.type}"
    if obstacle := why_not_hopper(device):
        return obstacle
    if torch.cuda.get_device_capability(device)[0] == SMALL_BLOCKS:
        name = torch.cuda.get_device_name(device)
        return f"its products take 128 KiB of shared memory, and {name} has 99 for a block"
    return None


def why_not_hopper(device: torch.device) -> str | None:
    """Why a CUDA device has no FP8 tensor cores of the kind that is needed; None if it has."""
    capability = torch.cuda.get_device_capability(device)
    if capability < HOPPER:
        name, version = torch.cuda.get_device_name(device), ".".join(map(str, capability))
        return f"FP8 needs Hopper (compute capability 9.0) or later, {name} has {version}"
    return None


def has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def interpreting() -> bool:
    """Whether Triton simulates its kernels on the CPU; decided by the environment when triton is imported."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def _announce(name: str, device: str, obstacle: str | None) -> None:
    """One line per process and choice; a warning where a GPU goes without its kernels."""
    level = logging.WARNING if obstacle and device == "cuda" else logging.INFO
    reason = obstacle or ("the tensors are on the CPU" if device == "cpu" else "a GPU with FP8")
    log.log(level, "kernels: %s backend (%s)", name, reason)
