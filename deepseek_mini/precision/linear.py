"""A linear layer whose three products run in FP8 (V3 section 3.3).

    Fprop  y  = x w^T     x in 1x128 tiles, w in 128x128 blocks
    Dgrad  dx = dy w      dy in 1x128 tiles
    Wgrad  dw = dy^T x    both in 128x1 tiles; of x only an FP8 copy is kept, which is quantised again

Legend: M tokens, N outputs, K inputs.
"""

import torch
from torch import Tensor, nn

from deepseek_mini.model.dtype import compute_dtype
from deepseek_mini.precision import e5m6
from deepseek_mini.precision.arithmetic import Arithmetic
from deepseek_mini.precision.quantizers import Tiles


class Fp8Linear(nn.Linear):
    """Takes over a linear layer's parameter, which stays float32, as its gradient is."""

    def __init__(self, linear: nn.Linear, arithmetic: Arithmetic) -> None:
        nn.Module.__init__(self)
        assert linear.bias is None
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, None
        self.arithmetic = arithmetic

    def forward(self, x: Tensor) -> Tensor:
        tiles = self.operand(x)
        kept = self.keep(x, tiles) if torch.is_grad_enabled() else ()
        x_MK = x.reshape(-1, x.shape[-1])
        y_MN = _Linear.apply(x_MK, self.weight, self, tiles, kept, compute_dtype(x))
        return y_MN.unflatten(0, x.shape[:-1])

    def operand(self, x: Tensor) -> Tiles:
        """What Fprop multiplies, from the input `[..., K]`."""
        return self.arithmetic.input_rows(x)

    def keep(self, x: Tensor, tiles: Tiles) -> tuple[Tensor, ...]:
        """What is kept for Wgrad."""
        return tiles

    def columns(self, kept: tuple[Tensor, ...]) -> Tiles:
        """What Wgrad multiplies, from what was kept."""
        return self.arithmetic.quantizers.requantize(Tiles(*kept))


class AttentionOutput(Fp8Linear):
    """The linear after attention: powers of two as factors, and E5M6 kept for Wgrad (V3 section 3.3.3).

    The report has attention's own backward pass use that copy too; ours keeps what its kernel saves.
    """

    def operand(self, x: Tensor) -> Tiles:
        return self.arithmetic.quantizers.rows(x.detach().reshape(-1, self.in_features), "pow2")

    def keep(self, x: Tensor, tiles: Tiles) -> tuple[Tensor, ...]:
        return e5m6.encode(x.detach().reshape(-1, self.in_features))

    def columns(self, kept: tuple[Tensor, ...]) -> Tiles:
        packed, factors = kept
        x_MK = e5m6.decode(packed, factors, self.in_features)
        return self.arithmetic.quantizers.columns(x_MK, "pow2")


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_MK, weight_NK, layer: Fp8Linear, tiles, kept, dtype):
        ctx.layer, ctx.dtype = layer, x_MK.dtype
        ctx.save_for_backward(*kept)
        arithmetic = layer.arithmetic
        return arithmetic.products.fprop(tiles, arithmetic.weight(weight_NK), dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy_MN):
        layer, arithmetic = ctx.layer, ctx.layer.arithmetic
        rows, columns = arithmetic.quantizers.gradient(dy_MN)
        dx_MK = arithmetic.products.dgrad(rows, arithmetic.weight(layer.weight), ctx.dtype)
        dw_NK = arithmetic.products.wgrad(columns, layer.columns(ctx.saved_tensors))
        return dx_MK, dw_NK, None, None, None, None
