"""How Hopper's tensor cores add: 13 bits after the leading one, 32 products at a time (V3 section 3.5.2).

Legend: M rows, N columns, C = 32 elements of one instruction.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

INSTRUCTION = 32
"""FP8 elements along K that one instruction adds up."""
MANTISSA_BITS = 23
"""Of a float32, below the leading one."""


@dataclass(frozen=True, slots=True)
class HopperAccumulation:
    """Emulate the tensor core's sums; every `promote_every` elements they move to float32 and start anew.

    The report says that bits are cut after shifts that fill with the sign, which rounds down; measurements
    of other tensor cores found rounding towards zero (doi:10.7717/peerj-cs.330). The two differ much: over
    4,096 normal numbers without promotion, errors reach 4.7% or 0.4% of the largest result (V3: "near 2%").
    """

    promote_every: int | None = 128
    """N_C: 32, 64 or a multiple of 128; None never promotes."""
    rounding: Literal["down", "zero"] = "down"
    fraction_bits: int = 13
    """Bits below the leading one that survive: 14 in all (V3), registers of 22 bits (arXiv:2505.09343)."""
    align_products: bool = True
    """Cut every product, as the hardware does; False cuts only each instruction's sum, which is faster."""

    def __post_init__(self) -> None:
        every = self.promote_every
        if every is not None and (every < 1 or every % INSTRUCTION or (128 % every and every % 128)):
            raise ValueError(f"promote_every={every} must be 32, 64, or a multiple of 128")

    def add(self, sum_MN: Tensor, a_MC: Tensor, b_NC: Tensor) -> Tensor:
        """The register after one instruction: sum + a b^T, aligned to the largest addend and cut."""
        if not self.align_products:
            return self.cut(sum_MN + a_MC @ b_NC.T)
        products_MNC = a_MC[:, None] * b_NC
        unit_MN = self._unit(torch.maximum(products_MNC.abs().amax(-1), sum_MN.abs()))
        whole_MN = self._round(products_MNC / unit_MN[..., None]).sum(-1) + self._round(sum_MN / unit_MN)
        return self.cut(whole_MN * unit_MN)

    def cut(self, x: Tensor) -> Tensor:
        """What a register keeps of x (float32): lower bits fall, and downwards a negative number grows."""
        below = (1 << MANTISSA_BITS - self.fraction_bits) - 1
        bits = x.view(torch.int32)
        if self.rounding == "down":
            bits = bits + (bits >> 31 & below)
        return (bits & ~below).view(torch.float32)

    def _unit(self, magnitude: Tensor) -> Tensor:
        """Worth of the last bit that survives beside numbers of this magnitude."""
        mantissa, exponent = torch.frexp(magnitude)  # magnitude = mantissa * 2^exponent, mantissa in [0.5, 1)
        return torch.ldexp(torch.ones_like(mantissa), (exponent - 1 - self.fraction_bits).clamp(min=-126))

    def _round(self, x: Tensor) -> Tensor:
        return x.floor() if self.rounding == "down" else x.trunc()
