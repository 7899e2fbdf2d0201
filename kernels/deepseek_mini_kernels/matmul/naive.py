"""Block-scaled matrix product, one block of 128 along K after the other (V3 section 3.3.2).

Legend: M rows, N columns, K summed, Y = ceil(K / 128), B = 128, C = 32.
"""

import torch
from torch import Tensor

from deepseek_mini_kernels.formats import BLOCK
from deepseek_mini_kernels.matmul.hopper import INSTRUCTION, HopperAccumulation


def block_scaled_matmul(
    a_MK: Tensor,
    a_scale_MY: Tensor,
    b_NK: Tensor,
    b_scale: Tensor,
    dtype: torch.dtype,
    accumulation: HopperAccumulation | None = None,
) -> Tensor:
    a_MK, b_NK = a_MK.float(), b_NK.float()
    b_scale_NY = b_scale if len(b_scale) == len(b_NK) else b_scale.repeat_interleave(BLOCK, 0)[: len(b_NK)]
    with torch.autocast(a_MK.device.type, enabled=False):  # which would round the sums of a block to BF16
        if accumulation is not None:
            return _with_hopper_sums(a_MK, a_scale_MY, b_NK, b_scale_NY, accumulation).to(dtype)
        sum_MN = a_MK.new_zeros(len(a_MK), len(b_NK))
        for y in range(a_scale_MY.shape[1]):
            here = slice(y * BLOCK, (y + 1) * BLOCK)
            sum_MN += (a_MK[:, here] @ b_NK[:, here].T).mul_(a_scale_MY[:, y, None]).mul_(b_scale_NY[:, y])
        return sum_MN.to(dtype)


def _with_hopper_sums(a_MK, a_scale_MY, b_NK, b_scale_NY, accumulation: HopperAccumulation) -> Tensor:
    """As the tensor core adds. A register that outlives a block goes on in the factors of the next one.

    With one factor per tensor that changes nothing, and this is what the hardware does without promotion.
    """
    sum_MN = register_MN = a_MK.new_zeros(len(a_MK), len(b_NK))
    width = a_MK.shape[1]
    every = accumulation.promote_every or width
    factor_MN = torch.ones_like(sum_MN)
    for first in range(0, width, INSTRUCTION):
        y, here = first // BLOCK, slice(first, first + INSTRUCTION)
        if first % BLOCK == 0:
            previous_MN, factor_MN = factor_MN, a_scale_MY[:, y, None] * b_scale_NY[:, y]
            register_MN = accumulation.cut(register_MN * (previous_MN / factor_MN))
        register_MN = accumulation.add(register_MN, a_MK[:, here], b_NK[:, here])
        end = first + INSTRUCTION
        if end % every == 0 or end >= width:
            sum_MN = sum_MN + register_MN * factor_MN
            register_MN = torch.zeros_like(register_MN)
    return sum_MN
