"""Weights in FP8: one scale per block of 128 x 128 (V3 section 3.3; `weight_scale_inv` of the release).

Legend: N output width, K input width, X = ceil(N / 128) and Y = ceil(K / 128) blocks.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 128
E4M3 = torch.float8_e4m3fn
LARGEST = torch.finfo(E4M3).max
SMALLEST_AMAX = 1e-4
"""Floor of a block's largest magnitude, as in DeepSeek's released quantiser: a block of zeros has a scale."""


def quantize_weight(w_NK: Tensor) -> tuple[Tensor, Tensor]:
    """E4M3 values `[N, K]` and the float32 factors `[X, Y]` that give the weight back: w ~ q * scale.

    scale = max(amax, 1e-4) / 448 of each block; blocks at the edges may be smaller. Zeros stay zeros. A
    block with a NaN or an infinity becomes NaN as a whole, values and scale; other blocks do not feel it.
    Quantising what `dequantize_weight` returned gives the same bits again.
    """
    w_NK = w_NK.float()
    amax_XY = _block_amax(w_NK)
    amax_XY = amax_XY.masked_fill(amax_XY.isinf(), torch.nan).clamp(min=SMALLEST_AMAX)
    scale_XY = amax_XY / LARGEST
    scaled_NK = w_NK / _spread(scale_XY, w_NK.shape)
    return scaled_NK.clamp(-LARGEST, LARGEST).to(E4M3), scale_XY  # the cast makes NaN of what is larger


def dequantize_weight(q_NK: Tensor, scale_XY: Tensor) -> Tensor:
    """The float32 weight `[N, K]`: every value times the factor of its block."""
    return q_NK.float() * _spread(scale_XY.float(), q_NK.shape)


def scale_shape(n: int, k: int) -> list[int]:
    """Shape `[X, Y]` of the factors of a weight `[n, k]`."""
    return [-(-n // BLOCK), -(-k // BLOCK)]


def _block_amax(w_NK: Tensor) -> Tensor:
    n, k = w_NK.shape
    padded = F.pad(w_NK.abs(), (0, -k % BLOCK, 0, -n % BLOCK))
    return padded.unflatten(1, (-1, BLOCK)).unflatten(0, (-1, BLOCK)).amax((1, 3))


def _spread(scale_XY: Tensor, shape: torch.Size) -> Tensor:
    """Each block's factor at all of its places, `[N, K]`."""
    n, k = shape
    return scale_XY.repeat_interleave(BLOCK, 0)[:n].repeat_interleave(BLOCK, 1)[:, :k]
