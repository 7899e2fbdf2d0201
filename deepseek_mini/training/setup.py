"""What a process needs before it trains: products that run, exact repeats, and memory that is kept."""

import ctypes
import sys
from collections.abc import Callable

import torch

from deepseek_mini.checks import require
from deepseek_mini.config import Format, ModelConfig
from deepseek_mini.cost.hardware import choose_precision

GROUPED_CAPABILITIES = (9, 10)
"""Major compute capabilities on which torch has a grouped product, in BF16."""

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3


def check_grouped_products(
    model: ModelConfig, format: Format, device: torch.device, announce: Callable[[str], None]
) -> None:
    """What torch's grouped product asks of routed experts on CUDA; in FP8 they are multiplied otherwise.

    Raises ValueError for rows that are no multiple of 16 bytes. Announces where torch has a loop in its
    place, which reads the group sizes on the host.
    """
    has_experts = model.n_dense_layers < model.n_layers or model.mtp.depth > 0
    if device.type != "cuda" or format is Format.fp8 or not has_experts:
        return
    dtype, _ = choose_precision(device, format)
    multiple = 16 // dtype.itemsize
    for key in ("dim", "moe_inter_dim"):
        width = getattr(model, key)
        better = -(-width // multiple) * multiple
        require(
            width == better,
            f"model.{key}={width} must be a multiple of {multiple} on CUDA: torch's grouped product of the "
            f"experts takes multiples of 16 bytes; set model.{key}={better} or device=cpu",
        )
    major = torch.cuda.get_device_capability(device)[0]
    if dtype is not torch.bfloat16 or major not in GROUPED_CAPABILITIES:
        announce(
            "experts: multiplied one after the other, and the host waits for their counts: torch's grouped "
            "product is for BF16 on compute capability 9 and 10"
        )


def make_deterministic(device: torch.device) -> None:
    """On a CPU, where it costs nothing, the same run twice is the same bit for bit."""
    if device.type == "cpu":
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]


def keep_freed_memory() -> None:
    """Ask the C library (glibc) not to give freed memory back: each step would fault it in again."""
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        gibibyte = 1 << 30
        for option in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_TOP_PAD):
            mallopt(option, gibibyte if option != M_TOP_PAD else 64 << 20)
