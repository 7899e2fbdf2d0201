"""Weights in FP8: one scale per block of 128 x 128 (V3 section 3.3; `weight_scale_inv` of the release)."""

from deepseek_mini_kernels.formats import BLOCK, E4M3, blocks
from deepseek_mini_kernels.quantize import dequantize_weight, quantize_weight

__all__ = ["BLOCK", "E4M3", "dequantize_weight", "quantize_weight", "scale_shape"]


def scale_shape(n: int, k: int) -> list[int]:
    """Shape `[ceil(n / 128), ceil(k / 128)]` of the factors of a weight `[n, k]`."""
    return [blocks(n), blocks(k)]
