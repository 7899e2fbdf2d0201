"""The precisions that a benchmark runs in: the one asked for, and never another without a word."""

from collections.abc import Callable

import torch

from benchmarks.result import Unavailable
from deepseek_mini.config import Config, Format
from deepseek_mini.cost.hardware import choose_precision


def precisions(name: str, config: Config, device: torch.device, say: Callable[[str], None]) -> list[Format]:
    """The one asked for; of `auto` FP32, and BF16 where the device has it. Raises Unavailable for FP8."""
    refuse_fp8(name, config)
    format = config.precision.format
    dtype, reason = choose_precision(device, format)
    both = format is Format.auto and dtype is torch.bfloat16
    say(f"{name}: {'FP32 and ' * both}{arithmetic(dtype)} with precision={format}: {reason}")
    if format is not Format.auto:
        return [format]
    return [Format.fp32, Format.bf16] if both else [Format.fp32]


def one_precision(name: str, config: Config, device: torch.device, say: Callable[[str], None]) -> torch.dtype:
    """The arithmetic asked for, or chosen; says which, and why. Raises Unavailable for FP8."""
    refuse_fp8(name, config)
    format = config.precision.format
    dtype, reason = choose_precision(device, format)
    say(f"{name}: {arithmetic(dtype)} with precision={format}: {reason}")
    return dtype


def refuse_fp8(name: str, config: Config) -> None:
    if config.precision.format is Format.fp8:
        raise Unavailable(
            f"{name}: FP32 and BF16 only, not precision=fp8; `benchmark.py kernels` times the products of FP8"
        )


def arithmetic(dtype: torch.dtype) -> str:
    return "BF16" if dtype is torch.bfloat16 else "FP32"
