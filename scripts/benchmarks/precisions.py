"""The precisions that a benchmark runs in."""

from collections.abc import Callable

import torch

from deepseek_mini.config import Format
from deepseek_mini.cost.hardware import choose_precision


def precisions(device: torch.device, say: Callable[[str], None]) -> list[Format]:
    """FP32, and BF16 where the device has it; says so where it does not."""
    dtype, reason = choose_precision(device, Format.auto)
    if dtype is torch.bfloat16:
        return [Format.fp32, Format.bf16]
    say(f"bf16 is left out: {reason}")
    return [Format.fp32]
