"""What a process needs before it trains: exact repeats, and memory that is kept."""

import ctypes
import sys

import torch

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3


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
