"""E5M6, five bits of exponent and six of mantissa, for what is kept after attention (V3 section 3.3.3).

The report names the format and says that its factors are powers of two, so that tiles of 1x128 become tiles
of 128x1 without a new rounding. The rest is chosen here: IEEE's bias of 15 with subnormals, the largest
number 65,024, and two numbers packed into three bytes. A tile with a NaN or an infinity becomes NaN.

Legend: M tokens, K channels, Y = ceil(K / 128), H = ceil(K / 2) pairs.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from deepseek_mini.precision.quantizers import Tiles
from deepseek_mini_kernels.formats import BLOCK
from deepseek_mini_kernels.quantize.naive import scale_of

LARGEST = 65024.0
SMALLEST_NORMAL = 2.0**-14
DROPPED = 17
"""Bits of a float32 mantissa beyond the six."""


def encode(x_MK: Tensor) -> tuple[Tensor, Tensor]:
    """`(packed, factors)`: uint8 `[M, 3 H]` and float32 `[M, Y]` of 1x128 tiles, 1.5 bytes a number."""
    padded_MYB = F.pad(x_MK.float(), (0, -x_MK.shape[1] % BLOCK)).unflatten(1, (-1, BLOCK))
    factors_MY = scale_of(padded_MYB.abs().amax(-1), "pow2", largest=LARGEST)
    numbers_MK = round_to_e5m6(padded_MYB / factors_MY[..., None]).flatten(1)[:, : x_MK.shape[1]]
    codes_MK = F.pad(numbers_MK.half(), (0, x_MK.shape[1] % 2)).view(torch.int16) >> 4 & 0xFFF
    first_MH, second_MH = codes_MK[:, 0::2], codes_MK[:, 1::2]
    bytes_MH3 = (first_MH & 0xFF, first_MH >> 8 | (second_MH & 0xF) << 4, second_MH >> 4)
    return torch.stack(bytes_MH3, -1).to(torch.uint8).flatten(1), factors_MY


def decode(packed: Tensor, factors_MY: Tensor, width: int) -> Tensor:
    """The float32 numbers `[M, width]`."""
    one_MH, two_MH, three_MH = packed.to(torch.int16).unflatten(1, (-1, 3)).unbind(-1)
    codes_MH2 = torch.stack((one_MH | (two_MH & 0xF) << 8, two_MH >> 4 | three_MH << 4), -1)
    numbers_MK = (codes_MH2.flatten(1)[:, :width] << 4).view(torch.float16)
    return Tiles(numbers_MK, factors_MY).dequantized()


def round_to_e5m6(x: Tensor) -> Tensor:
    """The nearest E5M6 numbers of float32 ones up to 65,024 in size, of two equally near ones the even."""
    bits = x.view(torch.int32)
    half_before_even = (1 << DROPPED - 1) - 1 + (bits >> DROPPED & 1)
    normal = ((bits + half_before_even) >> DROPPED << DROPPED).view(torch.float32)
    subnormal = torch.round(x * 2.0**20) * 2.0**-20
    return torch.where(x.isnan(), x, torch.where(x.abs() < SMALLEST_NORMAL, subnormal, normal))
