"""E4M3 in tiles of 128: the constants that every op shares (V3 section 3.3)."""

from typing import Literal

import torch

BLOCK = 128
"""Width of an activation tile, side of a weight block, and elements between two promotions to float32."""
E4M3 = torch.float8_e4m3fn
LARGEST = torch.finfo(E4M3).max
SMALLEST_AMAX = 1e-4
"""Floor of a tile's largest magnitude, as in DeepSeek's released quantiser: a tile of zeros has a scale."""
SMALLEST_GRADIENT = 1e-30
"""The same for gradients, which shrink as the batch grows: with a floor of 1e-4 they end as zeros."""

Scales = Literal["fp32", "pow2"]
"""fp32: amax / 448 as it is (V3); pow2: rounded up to a power of two (V3.1's `ue8m0`)."""


def blocks(size: int) -> int:
    """How many blocks of 128 cover `size` elements."""
    return -(-size // BLOCK)
