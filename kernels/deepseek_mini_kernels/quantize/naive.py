"""Quantisation to E4M3 by DeepSeek's formula, written literally: x / (max(amax, 1e-4) / 448).

Legend: M tokens, K channels, N output width, Y = ceil(K / 128), X = ceil(N / 128), E experts,
P tokens with every group padded to a multiple of 128, Z = P / 128.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from deepseek_mini_kernels.formats import BLOCK, E4M3, LARGEST, SMALLEST_AMAX, Scales


def quantize_activation(x_MK: Tensor, scales: Scales) -> tuple[Tensor, Tensor]:
    x_MK = x_MK.float()
    padded_MYB = F.pad(x_MK, (0, -x_MK.shape[1] % BLOCK)).unflatten(1, (-1, BLOCK))
    scale_MY = scale_of(padded_MYB.abs().amax(-1), scales)
    return _cast(x_MK, _along_rows(scale_MY, x_MK.shape[1])), scale_MY


def dequantize_activation(q_MK: Tensor, scale_MY: Tensor) -> Tensor:
    return q_MK.float() * _along_rows(scale_MY.float(), q_MK.shape[1])


def quantize_columns(x_MK: Tensor, counts_E: Tensor | None, scales: Scales) -> tuple[Tensor, Tensor]:
    return quantize_activation(pad_groups(x_MK.float(), counts_E).T.contiguous(), scales)


def quantize_rows_and_columns(
    x_MK: Tensor, counts_E: Tensor | None, scales: Scales
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return *quantize_activation(x_MK, scales), *quantize_columns(x_MK, counts_E, scales)


def requantize_columns(
    q_MK: Tensor, scale_MY: Tensor, counts_E: Tensor | None, scales: Scales
) -> tuple[Tensor, Tensor]:
    return quantize_columns(dequantize_activation(q_MK, scale_MY), counts_E, scales)


def quantize_weight(w_NK: Tensor, scales: Scales) -> tuple[Tensor, Tensor]:
    w_NK = w_NK.float()
    n, k = w_NK.shape[-2:]
    padded = F.pad(w_NK.abs(), (0, -k % BLOCK, 0, -n % BLOCK))
    scale_XY = scale_of(padded.unflatten(-1, (-1, BLOCK)).unflatten(-3, (-1, BLOCK)).amax((-3, -1)), scales)
    return _cast(w_NK, _over_blocks(scale_XY, n, k)), scale_XY


def quantize_weight_and_transpose(w_NK: Tensor, scales: Scales) -> tuple[Tensor, Tensor, Tensor]:
    q_NK, scale_XY = quantize_weight(w_NK, scales)
    return q_NK, q_NK.mT.contiguous(), scale_XY


def dequantize_weight(q_NK: Tensor, scale_XY: Tensor) -> Tensor:
    return q_NK.float() * _over_blocks(scale_XY.float(), *q_NK.shape[-2:])


def scale_of(amax: Tensor, scales: Scales) -> Tensor:
    """Dequantisation factors; NaN where the largest magnitude is not finite."""
    amax = amax.masked_fill(amax.isinf(), torch.nan).clamp(min=SMALLEST_AMAX)
    scale = amax / torch.full_like(amax, LARGEST)  # a plain number would be a reciprocal product on a GPU
    return scale if scales == "fp32" else _next_power_of_two(scale)


def pad_groups(x_MK: Tensor, counts_E: Tensor | None) -> Tensor:
    """Rows `[P, K]` with each group followed by zeros up to a multiple of 128, P = `padded_rows`."""
    counts = [len(x_MK)] if counts_E is None else counts_E.tolist()
    groups = [F.pad(group, (0, 0, 0, -len(group) % BLOCK)) for group in x_MK.split(counts)]
    x_PK = torch.cat(groups)
    return F.pad(x_PK, (0, 0, 0, padded_rows(len(x_MK), len(counts)) - len(x_PK)))


def padded_rows(n_rows: int, n_groups: int) -> int:
    """Rows that are enough for any split into groups padded to multiples of 128: known without the split."""
    return (n_rows + (BLOCK - 1) * n_groups) // BLOCK * BLOCK


def _next_power_of_two(scale: Tensor) -> Tensor:
    """2^ceil(log2(scale)) by way of the exponent's bits: exact, where a float32 logarithm is not."""
    bits = scale.nan_to_num(1.0).view(torch.int32)
    powers = ((bits + 0x7FFFFF) & 0x7F800000).view(torch.float32)
    return powers.masked_fill(scale.isnan(), torch.nan)


def _cast(x: Tensor, scale: Tensor) -> Tensor:
    return (x / scale).clamp(-LARGEST, LARGEST).to(E4M3)


def _along_rows(scale_MY: Tensor, k: int) -> Tensor:
    """Each tile's factor at all of its places, `[M, K]`."""
    return scale_MY.repeat_interleave(BLOCK, -1)[..., :k]


def _over_blocks(scale_XY: Tensor, n: int, k: int) -> Tensor:
    """Each block's factor at all of its places, `[N, K]`."""
    return _along_rows(scale_XY.repeat_interleave(BLOCK, -2)[..., :n, :], k)
