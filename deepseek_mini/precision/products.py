"""The matrix products of the FP8 layers, of one weight or of a stack of them with rows of its own for each.

    Fprop  y_MN  = x_MK w_NK^T      Dgrad  dx_MK = dy_MN w_NK      Wgrad  dw_NK = dy_NP x_KP^T

Legend: M rows, N outputs, K inputs, X = ceil(N / 128), Y = ceil(K / 128), E experts, P tokens with every
expert's padded to a multiple of 128.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from deepseek_mini.precision.quantizers import Quantizers, Tiles
from deepseek_mini_kernels.backend import Backend
from deepseek_mini_kernels.formats import BLOCK, blocks
from deepseek_mini_kernels.grouped_matmul import grouped_matmul, grouped_wgrad
from deepseek_mini_kernels.matmul import HopperAccumulation, block_scaled_matmul
from deepseek_mini_kernels.quantize import dequantize_weight


class Products(Protocol):
    """Who multiplies. With `counts_E` the rows are those of E experts, one after the other."""

    def prepare(self, w_NK: Tensor, quantizers: Quantizers) -> Any:
        """A weight quantised and laid out for `fprop` and `dgrad`."""
        ...

    def fprop(self, x: Tiles, weight: Any, dtype: torch.dtype, counts_E: Tensor | None = None) -> Tensor:
        """`[M, N]` in `dtype`."""
        ...

    def dgrad(self, dy: Tiles, weight: Any, dtype: torch.dtype, counts_E: Tensor | None = None) -> Tensor:
        """`[M, K]` in `dtype`."""
        ...

    def wgrad(self, dy: Tiles, x: Tiles, counts_E: Tensor | None = None) -> Tensor:
        """`[N, K]` or `[E, N, K]` in float32; zeros for an expert without tokens."""
        ...


class KernelWeight(NamedTuple):
    """E4M3 values, the same transposed, and the factors of their blocks."""

    values_NK: Tensor
    values_KN: Tensor
    factors_XY: Tensor


class KernelProducts:
    """FP8 operands, and sums promoted to float32 every 128 elements: Triton, or the plain reference."""

    def __init__(self, backend: Backend, accumulation: HopperAccumulation | None = None) -> None:
        self.backend: Backend = backend
        self.accumulation = accumulation

    def prepare(self, w_NK: Tensor, quantizers: Quantizers) -> KernelWeight:
        return KernelWeight(*quantizers.weight_and_transpose(w_NK))

    def fprop(
        self, x: Tiles, weight: KernelWeight, dtype: torch.dtype, counts_E: Tensor | None = None
    ) -> Tensor:
        return self._multiply(x, weight.values_NK, weight.factors_XY, dtype, counts_E)

    def dgrad(
        self, dy: Tiles, weight: KernelWeight, dtype: torch.dtype, counts_E: Tensor | None = None
    ) -> Tensor:
        return self._multiply(dy, weight.values_KN, weight.factors_XY.mT, dtype, counts_E)

    def wgrad(self, dy: Tiles, x: Tiles, counts_E: Tensor | None = None) -> Tensor:
        how = torch.float32, self.accumulation, self.backend
        if counts_E is None:
            return block_scaled_matmul(*dy, *x, *how)
        return grouped_wgrad(*dy, *x, counts_E, *how)

    def _multiply(
        self, a: Tiles, values: Tensor, factors: Tensor, dtype: torch.dtype, counts_E: Tensor | None
    ) -> Tensor:
        how = dtype, self.accumulation, self.backend
        if counts_E is None:
            return block_scaled_matmul(*a, values, factors, *how)
        return grouped_matmul(*a, values, factors, counts_E, *how)


class EmulatedProducts:
    """The same numbers in one float32 product, on any device: what differs is the order of the sums.

    A weight is kept as the float32 numbers that its FP8 values stand for.
    """

    def prepare(self, w_NK: Tensor, quantizers: Quantizers) -> Tensor:
        return dequantize_weight(*quantizers.weight(w_NK))

    def fprop(self, x: Tiles, weight: Tensor, dtype: torch.dtype, counts_E: Tensor | None = None) -> Tensor:
        return self._multiply(x, weight.mT, dtype, counts_E)

    def dgrad(self, dy: Tiles, weight: Tensor, dtype: torch.dtype, counts_E: Tensor | None = None) -> Tensor:
        return self._multiply(dy, weight, dtype, counts_E)

    def wgrad(self, dy: Tiles, x: Tiles, counts_E: Tensor | None = None) -> Tensor:
        dy_NP, x_KP = dy.dequantized(), x.dequantized()
        with _no_autocast(dy_NP):
            if counts_E is None:
                return dy_NP @ x_KP.T
            dw_ENK = dy_NP.new_zeros(len(counts_E), len(dy_NP), len(x_KP))
            for dw_NK, places in zip(dw_ENK, padded_places(counts_E), strict=True):
                torch.mm(dy_NP[:, places], x_KP[:, places].T, out=dw_NK)
        return dw_ENK

    def _multiply(self, a: Tiles, weight: Tensor, dtype: torch.dtype, counts_E: Tensor | None) -> Tensor:
        a_MK = a.dequantized()
        with _no_autocast(a_MK):
            if counts_E is None:
                return (a_MK @ weight).to(dtype)
            c_MN = a_MK.new_empty(len(a_MK), weight.shape[-1])
            counts = counts_E.tolist()
            for a_CK, c_CN, w_KN in zip(a_MK.split(counts), c_MN.split(counts), weight, strict=True):
                torch.mm(a_CK, w_KN, out=c_CN)
        return c_MN.to(dtype)


def padded_places(counts_E: Tensor) -> Iterator[slice]:
    """Where each expert's tokens stand when every expert's are padded to a multiple of 128."""
    first = 0
    for n_tiles in map(blocks, counts_E.tolist()):
        yield slice(first * BLOCK, (first + n_tiles) * BLOCK)
        first += n_tiles


def _no_autocast(x: Tensor) -> torch.autocast:
    """FP8 numbers times their factors do not fit BF16, which autocast would make of them."""
    return torch.autocast(x.device.type, enabled=False)
