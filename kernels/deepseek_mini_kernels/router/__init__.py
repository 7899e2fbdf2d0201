"""The gate after its matrix product: scores, groups, top-k and weights in one pass (V3 Eq. 12-16).

    logits -> scores -> + bias -> best M groups -> best K experts -> weights from the unbiased scores

Legend: N tokens, E experts, K experts per token, G groups, M groups that a token may use, X = E / G.
"""

import torch
from torch import Tensor

from deepseek_mini_kernels.backend import Backend, choose
from deepseek_mini_kernels.router import naive
from deepseek_mini_kernels.router.rule import Rule

__all__ = ["Rule", "route"]


def route(
    logits_NE: Tensor, bias_E: Tensor | None, rule: Rule, backend: Backend = "auto"
) -> tuple[Tensor, Tensor, Tensor]:
    """`(weights_NK, experts_NK, scores_NE)`: float32, int64 and float32; experts best first.

    Weights and scores are differentiable with respect to the logits; the bias is no parameter. Of equal
    scores the first expert wins. A NaN counts as the best score, so its token gets NaN weights and expert
    numbers that exist. Raises ValueError if `rule` does not fit E.
    """
    rule.check(logits_NE.shape[1])
    if choose(logits_NE, backend) == "naive":
        return naive.route(logits_NE.float(), bias_E, rule)
    return _Route.apply(logits_NE.float(), bias_E, rule)


class _Route(torch.autograd.Function):
    """The fused forward pass; the backward pass is a few elementwise operations on the scores."""

    @staticmethod
    def forward(ctx, logits_NE, bias_E, rule):
        from deepseek_mini_kernels.router import triton

        weights_NK, experts_NK, scores_NE = triton.route(logits_NE, bias_E, rule)
        ctx.rule = rule
        ctx.save_for_backward(experts_NK, scores_NE)
        ctx.mark_non_differentiable(experts_NK)
        return weights_NK, experts_NK, scores_NE

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d_weights_NK, _, d_scores_NE):
        experts_NK, scores_NE = ctx.saved_tensors
        d_chosen_NK = d_weights_NK * ctx.rule.route_scale
        if ctx.rule.score == "sigmoid":
            chosen_NK = scores_NE.gather(1, experts_NK)
            total_N1 = chosen_NK.sum(-1, keepdim=True) + 1e-20
            weighted_N1 = (d_chosen_NK * chosen_NK).sum(-1, keepdim=True) / total_N1
            d_chosen_NK = (d_chosen_NK - weighted_N1) / total_N1
        d_scores_NE = d_scores_NE.scatter_add(1, experts_NK, d_chosen_NK)
        if ctx.rule.score == "sigmoid":
            return d_scores_NE * scores_NE * (1 - scores_NE), None, None
        mean_N1 = (d_scores_NE * scores_NE).sum(-1, keepdim=True)
        return scores_NE * (d_scores_NE - mean_N1), None, None
