"""AdamW and Muon's momentum on single numbers, with moments that are rounded between steps."""

import math
import struct
from collections.abc import Callable


def to_bf16(x: float) -> float:
    """The nearest number with 8 bits of mantissa, of two equally near ones the even."""
    (bits,) = struct.unpack("<I", struct.pack("<f", x))
    bits = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000
    return struct.unpack("<f", struct.pack("<I", bits))[0]


def adamw(
    weight: float,
    gradients: list[float],
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    keep: Callable[[float], float] = to_bf16,
) -> tuple[float, float, float]:
    """The weight after a step for each gradient, and the moments that are kept (arXiv:1711.05101)."""
    kept_mean = kept_square = 0.0
    for step, gradient in enumerate(gradients, start=1):
        mean = betas[0] * kept_mean + (1 - betas[0]) * gradient
        square = betas[1] * kept_square + (1 - betas[1]) * gradient**2
        size = math.sqrt(square / (1 - betas[1] ** step)) + eps
        weight -= lr * weight_decay * weight
        weight -= lr * mean / (1 - betas[0] ** step) / size
        kept_mean, kept_square = keep(mean), keep(square)
    return weight, kept_mean, kept_square


def momentum(gradients: list[float], factor: float, keep: Callable[[float], float] = to_bf16) -> float:
    """What is kept of the gradients' running mean."""
    kept = 0.0
    for gradient in gradients:
        kept = keep(factor * kept + (1 - factor) * gradient)
    return kept
