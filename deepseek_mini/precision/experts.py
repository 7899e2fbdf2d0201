"""Routed experts in FP8, with what V3 keeps and sends of their activations (sections 3.2.2, 3.3.2 and 3.3.3).

A token is quantised once, before it is dispatched, with powers of two as factors; so is its gradient before
it is dispatched to the down-projections. The inputs of SwiGLU are kept in FP8, and its output is made again
in the backward pass. The sum over a token's experts stays in high precision, both ways.

Legend: N tokens, K experts per token, S = N * K assignments in expert order, E experts, D model width,
I inner width.
"""

import torch
from torch import Tensor, nn

from deepseek_mini.model.dtype import compute_dtype
from deepseek_mini.model.experts import RoutedExperts, plan_dispatch, sum_places
from deepseek_mini.precision.arithmetic import Arithmetic
from deepseek_mini.precision.quantizers import Tiles


class Fp8Experts(RoutedExperts):
    """Takes over the stacks of routed experts, which stay float32, as their gradients are."""

    def __init__(self, experts: RoutedExperts, arithmetic: Arithmetic) -> None:
        nn.Module.__init__(self)
        self.w1, self.w2, self.w3 = experts.w1, experts.w2, experts.w3
        self.arithmetic = arithmetic

    def forward(self, x_ND: Tensor, weights_NK: Tensor, experts_NK: Tensor) -> Tensor:
        plan = plan_dispatch(experts_NK, len(self.w1))
        weights_S = weights_NK.flatten().index_select(0, plan.order_S)
        keeps = torch.is_grad_enabled()
        return _Experts.apply(
            x_ND, weights_S, self.w1, self.w2, self.w3, self, plan, compute_dtype(x_ND), keeps
        )


class _Experts(torch.autograd.Function):
    """From tokens to the sums over their experts."""

    @staticmethod
    def forward(ctx, x_ND, weights_S, w1_EID, w2_EDI, w3_EID, layer: Fp8Experts, plan, dtype, keeps):
        arithmetic = layer.arithmetic
        quantizers, products = arithmetic.quantizers, arithmetic.products
        w1, w2, w3 = (arithmetic.weight(stack) for stack in (w1_EID, w2_EDI, w3_EID))
        x = quantizers.rows(x_ND, "pow2")
        x_S = x.take(plan.order_S // plan.n_activated)
        gate_SI = products.fprop(x_S, w1, dtype, plan.counts_E)
        up_SI = products.fprop(x_S, w3, dtype, plan.counts_E)
        inner = quantizers.swiglu(gate_SI, up_SI, weights_S)
        y_SD = products.fprop(inner, w2, dtype, plan.counts_E)
        if keeps:
            ctx.save_for_backward(weights_S, *x, *quantizers.rows(gate_SI), *quantizers.rows(up_SI))
            ctx.layer, ctx.plan, ctx.dtypes = layer, plan, (dtype, x_ND.dtype, weights_S.dtype)
        return sum_places(y_SD, plan)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy_ND):
        layer, plan, (dtype, x_dtype, weights_dtype) = ctx.layer, ctx.plan, ctx.dtypes
        arithmetic, counts_E = layer.arithmetic, plan.counts_E
        quantizers, products = arithmetic.quantizers, arithmetic.products
        w1, w2, w3 = (arithmetic.weight(stack) for stack in (layer.w1, layer.w2, layer.w3))
        weights_S, *kept = ctx.saved_tensors
        tokens_S = plan.order_S // plan.n_activated
        x_S = Tiles(*kept[:2]).take(tokens_S)
        gate_SI, up_SI = Tiles(*kept[2:4]).dequantized(), Tiles(*kept[4:]).dequantized()

        dy_S = quantizers.sent_gradient(dy_ND).take(tokens_S)
        d_inner_SI = products.dgrad(dy_S, w2, dtype, counts_E)
        dw2_EDI = products.wgrad(
            quantizers.requantize_sent(dy_S, counts_E),
            quantizers.swiglu_columns(gate_SI, up_SI, weights_S, counts_E),
            counts_E,
        )
        d_gate_SI, d_up_SI, d_weights_S = swiglu_backward(d_inner_SI, gate_SI, up_SI, weights_S)
        x_columns = quantizers.requantize(x_S, counts_E, "pow2")
        d_gate, d_gate_columns = quantizers.gradient(d_gate_SI, counts_E)
        d_up, d_up_columns = quantizers.gradient(d_up_SI, counts_E)
        dw1_EID = products.wgrad(d_gate_columns, x_columns, counts_E)
        dw3_EID = products.wgrad(d_up_columns, x_columns, counts_E)
        d_x_SD = products.dgrad(d_gate, w1, dtype, counts_E)
        d_x_SD += products.dgrad(d_up, w3, dtype, counts_E)
        d_x_ND = sum_places(d_x_SD, plan).to(x_dtype)
        d_weights_S = d_weights_S.to(weights_dtype)
        return d_x_ND, d_weights_S, dw1_EID, dw2_EDI, dw3_EID, None, None, None, None


def swiglu_backward(
    d_inner_SI: Tensor, gate_SI: Tensor, up_SI: Tensor, weights_S: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of gate, up and weights from that of silu(gate) * up * weight, in float32."""
    d_inner_SI, weights_S1 = d_inner_SI.float(), weights_S.float()[:, None]
    sigmoid_SI = torch.sigmoid(gate_SI)
    silu_SI = sigmoid_SI * gate_SI
    d_weights_S = (d_inner_SI * silu_SI * up_SI).sum(1)
    d_product_SI = d_inner_SI * weights_S1
    d_up_SI = d_product_SI * silu_SI
    slope_SI = sigmoid_SI * (1 + gate_SI - silu_SI)
    return d_product_SI * up_SI * slope_SI, d_up_SI, d_weights_S
