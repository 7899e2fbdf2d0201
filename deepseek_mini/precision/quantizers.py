"""How the FP8 layers quantise (V3 section 3.3): in tiles and blocks, and the coarser ways of the studies.

Factors are always those of tiles, so that the same products serve all: a coarser way repeats them.

Legend: M tokens, K channels, N output width, Y = ceil(K / 128), X = ceil(N / 128), E experts, I inner width,
S assignments in expert order, P tokens with every expert's padded to a multiple of 128, Z = P / 128.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from deepseek_mini_kernels import quantize, swiglu
from deepseek_mini_kernels.backend import Backend
from deepseek_mini_kernels.formats import (
    BLOCK,
    E4M3,
    SMALLEST_AMAX,
    SMALLEST_GRADIENT,
    Scales,
    blocks,
)
from deepseek_mini_kernels.quantize.naive import cast, pad_groups, quantize_weight, scale_of
from deepseek_mini_kernels.swiglu.naive import swiglu as plain_swiglu


class Tiles(NamedTuple):
    """A quantised matrix: `values * factors` of their tiles."""

    values: Tensor
    """E4M3, `[M, K]` in 1x128 tiles, or transposed `[K, P]`, so that 128 tokens of a channel are a tile."""
    factors: Tensor
    """float32, `[M, Y]` or `[K, Z]`."""

    def take(self, rows: Tensor) -> "Tiles":
        """These rows, in this order."""
        values = self.values.view(torch.uint8).index_select(0, rows).view(E4M3)
        return Tiles(values, self.factors.index_select(0, rows))

    def dequantized(self) -> Tensor:
        """The float32 numbers that are meant."""
        return quantize.dequantize_activation(*self)


class Quantizers:
    """As V3: activations and their gradients in 1x128 and 128x1 tiles, weights in 128x128 blocks."""

    def __init__(self, scales: Scales, backend: Backend) -> None:
        self.scales: Scales = scales
        self.backend: Backend = backend

    def rows(self, x_MK: Tensor, scales: Scales | None = None) -> Tiles:
        """An activation in 1x128 tiles: an operand of Fprop."""
        return Tiles(*quantize.quantize_activation(x_MK, scales or self.scales, self.backend))

    def columns(self, x_MK: Tensor, scales: Scales) -> Tiles:
        """An activation in 128x1 tiles: an operand of Wgrad."""
        return Tiles(*quantize.quantize_columns(x_MK, None, scales, self.backend))

    def requantize(self, x: Tiles, counts_E: Tensor | None = None, scales: Scales | None = None) -> Tiles:
        """The 128x1 tiles of an activation that was kept in 1x128 tiles: transposed and quantised again.

        With `counts_E` the tokens are those of E experts, and tiles start anew with each.
        """
        scales = scales or self.scales
        return Tiles(*quantize.requantize_columns(*x, counts_E, scales, self.backend))

    def gradient(self, dy_MN: Tensor, counts_E: Tensor | None = None) -> tuple[Tiles, Tiles]:
        """An activation gradient for Dgrad and for Wgrad, each quantised from high precision."""
        values, factors, *columns = quantize.quantize_rows_and_columns(
            dy_MN, counts_E, self.scales, self.backend, SMALLEST_GRADIENT
        )
        return Tiles(values, factors), Tiles(*columns)

    def sent_gradient(self, dy_MN: Tensor) -> Tiles:
        """A gradient that goes to experts in 1x128 tiles, with powers of two as factors."""
        return Tiles(*quantize.quantize_activation(dy_MN, "pow2", self.backend, SMALLEST_GRADIENT))

    def requantize_sent(self, dy: Tiles, counts_E: Tensor) -> Tiles:
        """What Wgrad makes of it."""
        columns = quantize.requantize_columns(*dy, counts_E, "pow2", self.backend, SMALLEST_GRADIENT)
        return Tiles(*columns)

    def swiglu(self, gate_SI: Tensor, up_SI: Tensor, weights_S: Tensor) -> Tiles:
        """`rows` of silu(gate) * up * weight."""
        return Tiles(*swiglu.swiglu_quantize(gate_SI, up_SI, weights_S, self.scales, self.backend))

    def swiglu_columns(
        self, gate_SI: Tensor, up_SI: Tensor, weights_S: Tensor, counts_E: Tensor | None
    ) -> Tiles:
        """`columns` of silu(gate) * up * weight."""
        return Tiles(
            *swiglu.swiglu_quantize_columns(gate_SI, up_SI, weights_S, counts_E, self.scales, self.backend)
        )

    def weight(self, w_NK: Tensor) -> tuple[Tensor, Tensor]:
        """E4M3 values and factors `[X, Y]` of a weight, or of each weight of a stack."""
        return quantize.quantize_weight(w_NK, self.scales, self.backend)

    def weight_and_transpose(self, w_NK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The values, the transposed values, and the factors."""
        return quantize.quantize_weight_and_transpose(w_NK, self.scales, self.backend)


class PerTensor(Quantizers):
    """One factor per matrix, online: what V3's tiles are an answer to. All experts' tokens are one matrix."""

    def rows(self, x_MK: Tensor, scales: Scales | None = None) -> Tiles:
        return _one_tile(x_MK, scales or self.scales)

    def columns(self, x_MK: Tensor, scales: Scales) -> Tiles:
        return _one_tile(pad_groups(x_MK.float(), None).T, scales)

    def requantize(self, x: Tiles, counts_E: Tensor | None = None, scales: Scales | None = None) -> Tiles:
        return _one_tile(pad_groups(x.dequantized(), counts_E).T, scales or self.scales)

    def gradient(self, dy_MN: Tensor, counts_E: Tensor | None = None) -> tuple[Tiles, Tiles]:
        matrices = dy_MN, pad_groups(dy_MN.float(), counts_E).T
        rows, columns = (_one_tile(matrix, self.scales, SMALLEST_GRADIENT) for matrix in matrices)
        return rows, columns

    def sent_gradient(self, dy_MN: Tensor) -> Tiles:
        return _one_tile(dy_MN, "pow2", SMALLEST_GRADIENT)

    def requantize_sent(self, dy: Tiles, counts_E: Tensor) -> Tiles:
        return _one_tile(pad_groups(dy.dequantized(), counts_E).T, "pow2", SMALLEST_GRADIENT)

    def swiglu(self, gate_SI: Tensor, up_SI: Tensor, weights_S: Tensor) -> Tiles:
        return self.rows(plain_swiglu(gate_SI, up_SI, weights_S))

    def swiglu_columns(
        self, gate_SI: Tensor, up_SI: Tensor, weights_S: Tensor, counts_E: Tensor | None
    ) -> Tiles:
        inner_PI = pad_groups(plain_swiglu(gate_SI, up_SI, weights_S), counts_E)
        return _one_tile(inner_PI.T, self.scales)

    def weight(self, w_NK: Tensor) -> tuple[Tensor, Tensor]:
        n, k = w_NK.shape[-2:]
        factor = scale_of(w_NK.abs().amax((-2, -1)), self.scales)[..., None, None]
        return cast(w_NK.float(), factor), factor.expand(*w_NK.shape[:-2], blocks(n), blocks(k))

    def weight_and_transpose(self, w_NK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        values, factors = self.weight(w_NK)
        return values, values.mT.contiguous(), factors


class BlockGradients(Quantizers):
    """Activation gradients in 128x128 blocks, as weights: with these a 16B model diverged (V3 appendix B.2).

    One quantised gradient serves Dgrad and Wgrad. Blocks start anew with each expert.
    """

    def gradient(self, dy_MN: Tensor, counts_E: Tensor | None = None) -> tuple[Tiles, Tiles]:
        counts = [len(dy_MN)] if counts_E is None else counts_E.tolist()
        parts = [_in_blocks(part, self.scales) for part in dy_MN.split(counts)]
        values_MN, factors_MX = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        values_NP = pad_groups(values_MN.float(), counts_E).T.to(E4M3)
        factors_ZX = pad_groups(factors_MX, counts_E)[::BLOCK]
        factors_NZ = factors_ZX.repeat_interleave(BLOCK, 1)[:, : dy_MN.shape[1]].T
        return Tiles(values_MN, factors_MX), Tiles(values_NP, factors_NZ)

    def sent_gradient(self, dy_MN: Tensor) -> Tiles:
        return Tiles(*_in_blocks(dy_MN, "pow2"))


def _one_tile(x_MK: Tensor, scales: Scales, smallest: float = SMALLEST_AMAX) -> Tiles:
    """The whole matrix with one factor."""
    factor = scale_of(x_MK.float().abs().amax(), scales, smallest)
    return Tiles(cast(x_MK.float(), factor), factor.expand(len(x_MK), blocks(x_MK.shape[1])))


def _in_blocks(dy_MN: Tensor, scales: Scales) -> tuple[Tensor, Tensor]:
    """Values, and the factors of their 128x128 blocks for each row."""
    values_MN, factors_XY = quantize_weight(dy_MN, scales, SMALLEST_GRADIENT)
    return values_MN, factors_XY.repeat_interleave(BLOCK, 0)[: len(dy_MN)]
