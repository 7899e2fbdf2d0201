"""One block-scaled product per expert, in a loop.

Legend: as in the package.
"""

import torch
from torch import Tensor

from deepseek_mini_kernels.formats import BLOCK, blocks
from deepseek_mini_kernels.matmul.hopper import HopperAccumulation
from deepseek_mini_kernels.matmul.naive import block_scaled_matmul


def grouped_matmul(
    a_SK: Tensor,
    a_scale_SY: Tensor,
    b_ENK: Tensor,
    b_scale_EXY: Tensor,
    counts_E: Tensor,
    dtype: torch.dtype,
    accumulation: HopperAccumulation | None = None,
) -> Tensor:
    counts = counts_E.tolist()
    groups = zip(a_SK.split(counts), a_scale_SY.split(counts), b_ENK, b_scale_EXY, strict=True)
    return torch.cat([block_scaled_matmul(*group, dtype, accumulation) for group in groups])


def grouped_wgrad(
    a_NP: Tensor,
    a_scale_NZ: Tensor,
    b_KP: Tensor,
    b_scale_KZ: Tensor,
    counts_E: Tensor,
    dtype: torch.dtype,
    accumulation: HopperAccumulation | None = None,
) -> Tensor:
    result_ENK = a_NP.new_zeros(len(counts_E), len(a_NP), len(b_KP), dtype=dtype)
    first = 0
    for e, n_tiles in enumerate(blocks(count) for count in counts_E.tolist()):
        tiles, places = slice(first, first + n_tiles), slice(first * BLOCK, (first + n_tiles) * BLOCK)
        a, b = (a_NP[:, places], a_scale_NZ[:, tiles]), (b_KP[:, places], b_scale_KZ[:, tiles])
        result_ENK[e] = block_scaled_matmul(*a, *b, dtype, accumulation)
        first += n_tiles
    return result_ENK
