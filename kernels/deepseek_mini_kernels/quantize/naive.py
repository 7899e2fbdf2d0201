"""Quantisation to E4M3 by DeepSeek's formula, written literally: x / (max(amax, 1e-4) / 448).

Legend: M tokens, K channels, N output width, Y = ceil(K / 128), X = ceil(N / 128), E experts,
P tokens with every group padded to a multiple of 128, Z = P / 128.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from deepseek_mini_kernels.formats import BLOCK, E4M3, LARGEST, SMALLEST_AMAX, Scales, blocks

NUMBERS = torch.arange(256, dtype=torch.uint8).view(E4M3).float()
"""What each code of E4M3 stands for."""


def quantize_activation(
    x_MK: Tensor, scales: Scales, smallest: float = SMALLEST_AMAX
) -> tuple[Tensor, Tensor]:
    padded_MYB = _in_tiles(x_MK.float())
    scale_MY = scale_of(padded_MYB.abs().amax(-1), scales, smallest)
    q_MYB = cast(padded_MYB, scale_MY[..., None])
    return _out_of_tiles(q_MYB, x_MK.shape[1]), scale_MY


def dequantize_activation(q_MK: Tensor, scale_MY: Tensor) -> Tensor:
    return _out_of_tiles(_in_tiles(_numbers(q_MK)) * scale_MY[..., None], q_MK.shape[1])


def quantize_columns(
    x_MK: Tensor, counts_E: Tensor | None, scales: Scales, smallest: float = SMALLEST_AMAX
) -> tuple[Tensor, Tensor]:
    padded_ZBK = pad_groups(x_MK.float(), counts_E).unflatten(0, (-1, BLOCK))
    scale_ZK = scale_of(padded_ZBK.abs().amax(1), scales, smallest)
    return cast(padded_ZBK, scale_ZK[:, None]).flatten(0, 1).T.contiguous(), scale_ZK.T


def quantize_rows_and_columns(
    x_MK: Tensor, counts_E: Tensor | None, scales: Scales, smallest: float = SMALLEST_AMAX
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows = quantize_activation(x_MK, scales, smallest)
    return *rows, *quantize_columns(x_MK, counts_E, scales, smallest)


def requantize_columns(
    q_MK: Tensor,
    scale_MY: Tensor,
    counts_E: Tensor | None,
    scales: Scales,
    smallest: float = SMALLEST_AMAX,
) -> tuple[Tensor, Tensor]:
    return quantize_columns(dequantize_activation(q_MK, scale_MY), counts_E, scales, smallest)


def quantize_weight(w_NK: Tensor, scales: Scales, smallest: float = SMALLEST_AMAX) -> tuple[Tensor, Tensor]:
    n, k = w_NK.shape[-2:]
    padded_XBYB = _in_blocks(w_NK.float())
    scale_XY = scale_of(padded_XBYB.abs().amax((-3, -1)), scales, smallest)
    q_XBYB = cast(padded_XBYB, scale_XY[..., :, None, :, None])
    return _out_of_blocks(q_XBYB, n, k), scale_XY


def quantize_weight_and_transpose(w_NK: Tensor, scales: Scales) -> tuple[Tensor, Tensor, Tensor]:
    q_NK, scale_XY = quantize_weight(w_NK, scales)
    return q_NK, q_NK.mT.contiguous(), scale_XY


def dequantize_weight(q_NK: Tensor, scale_XY: Tensor) -> Tensor:
    padded_XBYB = _in_blocks(_numbers(q_NK))
    return _out_of_blocks(padded_XBYB * scale_XY.float()[..., :, None, :, None], *q_NK.shape[-2:])


def scale_of(
    amax: Tensor, scales: Scales, smallest: float = SMALLEST_AMAX, largest: float = LARGEST
) -> Tensor:
    """Dequantisation factors; NaN where the largest magnitude is not finite."""
    amax = amax.masked_fill(amax.isinf(), torch.nan).clamp(min=smallest)
    scale = amax / torch.full_like(amax, largest)  # a plain number would be a reciprocal product on a GPU
    return scale if scales == "fp32" else _next_power_of_two(scale)


def pad_groups(x_MK: Tensor, counts_E: Tensor | None) -> Tensor:
    """Rows `[P, K]` with each group followed by zeros up to a multiple of 128, P = `padded_rows`."""
    counts = [len(x_MK)] if counts_E is None else counts_E.tolist()
    if counts_E is None and len(x_MK) % BLOCK == 0:
        return x_MK
    x_PK = x_MK.new_zeros(padded_rows(len(x_MK), len(counts)), x_MK.shape[1])
    first = 0
    for group in x_MK.split(counts):
        x_PK[first : first + len(group)] = group
        first += blocks(len(group)) * BLOCK
    return x_PK


def padded_rows(n_rows: int, n_groups: int) -> int:
    """Rows that are enough for any split into groups padded to multiples of 128: known without the split."""
    return (n_rows + (BLOCK - 1) * n_groups) // BLOCK * BLOCK


def _next_power_of_two(scale: Tensor) -> Tensor:
    """2^ceil(log2(scale)) by way of the exponent's bits: exact, where a float32 logarithm is not."""
    bits = scale.nan_to_num(1.0).view(torch.int32)
    powers = ((bits + 0x7FFFFF) & 0x7F800000).view(torch.float32)
    return powers.masked_fill(scale.isnan(), torch.nan)


def cast(x: Tensor, scale: Tensor) -> Tensor:
    """The nearest E4M3 numbers of x / scale, float32."""
    return (x / scale).clamp_(-LARGEST, LARGEST).to(E4M3)


def _numbers(q: Tensor) -> Tensor:
    """The E4M3 numbers in float32. On a CPU a table of all 256 is faster than the cast."""
    if q.device.type != "cpu" or q.dtype != E4M3:
        return q.float()
    codes = q.reshape(-1).view(torch.uint8).int()
    return NUMBERS.index_select(0, codes).view(q.shape)


def _in_tiles(x_MK: Tensor) -> Tensor:
    """`[M, Y, 128]`, padded with zeros."""
    missing = -x_MK.shape[1] % BLOCK
    return (F.pad(x_MK, (0, missing)) if missing else x_MK).unflatten(1, (-1, BLOCK))


def _out_of_tiles(x_MYB: Tensor, k: int) -> Tensor:
    x_MK = x_MYB.flatten(1)
    return x_MK if x_MK.shape[1] == k else x_MK[:, :k].contiguous()


def _in_blocks(w_NK: Tensor) -> Tensor:
    """`[..., X, 128, Y, 128]`, padded with zeros."""
    n, k = w_NK.shape[-2:]
    if n % BLOCK or k % BLOCK:
        w_NK = F.pad(w_NK, (0, -k % BLOCK, 0, -n % BLOCK))
    return w_NK.unflatten(-1, (-1, BLOCK)).unflatten(-3, (-1, BLOCK))


def _out_of_blocks(w_XBYB: Tensor, n: int, k: int) -> Tensor:
    w_NK = w_XBYB.flatten(-2).flatten(-3, -2)
    return w_NK if w_NK.shape[-2:] == (n, k) else w_NK[..., :n, :k].contiguous()
