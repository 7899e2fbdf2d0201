"""The router's forward kernel: a few tokens per program, all experts in registers.

Experts sit in a rectangle of groups x experts, both rounded up to powers of two; what does not exist is
never eligible. Legend: T tokens of a program, W places of the rectangle, else as in the package.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from deepseek_mini_kernels.configs import ROUTE
from deepseek_mini_kernels.groups import power_of_two_above
from deepseek_mini_kernels.launch import launch
from deepseek_mini_kernels.router.rule import Rule


def route(logits_NE: Tensor, bias_E: Tensor | None, rule: Rule) -> tuple[Tensor, Tensor, Tensor]:
    logits_NE = logits_NE.contiguous()
    n, e = logits_NE.shape
    weights_NK = logits_NE.new_empty(n, rule.n_activated)
    experts_NK = logits_NE.new_empty(n, rule.n_activated, dtype=torch.int64)
    scores_NE = torch.empty_like(logits_NE)
    launch(
        ROUTE,
        (triton.cdiv(n, ROUTE.tile["BLOCK_T"]),),
        {
            "G": rule.n_groups,
            "X": e // rule.n_groups,
            "LIMITED": rule.n_limited_groups,
            "K": rule.n_activated,
            "WIDE_G": power_of_two_above(rule.n_groups),
            "WIDE_X": power_of_two_above(e // rule.n_groups),
            "WIDE_K": power_of_two_above(rule.n_activated),
            "SIGMOID": rule.score == "sigmoid",
            "TOP2": rule.group_score == "top2",
            "BIASED": bias_E is not None,
        },
        logits_ptr=logits_NE,
        bias_ptr=logits_NE if bias_E is None else bias_E.float().contiguous(),
        weights_ptr=weights_NK,
        experts_ptr=experts_NK,
        scores_ptr=scores_NE,
        N=n,
        route_scale=rule.route_scale,
    )
    return weights_NK, experts_NK, scores_NE


@triton.jit
def best_place(values, eligible, places, AXIS: tl.constexpr):
    """Place of the largest eligible value along an axis, of equals the first. There must be one."""
    best = tl.max(tl.where(eligible, values, float("-inf")), AXIS)
    is_best = eligible & (values == tl.expand_dims(best, AXIS))
    return tl.min(tl.where(is_best, places, 2147483647), AXIS)


@triton.jit
def route_kernel(
    logits_ptr, bias_ptr, weights_ptr, experts_ptr, scores_ptr, N, route_scale,
    G: tl.constexpr, X: tl.constexpr, LIMITED: tl.constexpr, K: tl.constexpr,
    WIDE_G: tl.constexpr, WIDE_X: tl.constexpr, WIDE_K: tl.constexpr,
    SIGMOID: tl.constexpr, TOP2: tl.constexpr, BIASED: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    tokens = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    place_W = tl.arange(0, WIDE_G * WIDE_X)
    expert_W = place_W // WIDE_X * X + place_W % WIDE_X
    exists_W = (place_W // WIDE_X < G) & (place_W % WIDE_X < X)
    exists_TW = (tokens < N)[:, None] & exists_W[None, :]
    addresses = tokens.to(tl.int64)[:, None] * (G * X) + expert_W[None, :]
    logits_TW = tl.load(logits_ptr + addresses, mask=exists_TW, other=0.0)
    if SIGMOID:
        scores_TW = 1.0 / (1.0 + tl.exp(-logits_TW))
    else:
        visible_TW = tl.where(exists_W[None, :], logits_TW, float("-inf"))
        powers_TW = tl.exp(visible_TW - tl.max(visible_TW, 1)[:, None])
        scores_TW = powers_TW / tl.sum(powers_TW, 1)[:, None]
    tl.store(scores_ptr + addresses, scores_TW, mask=exists_TW)

    biased_TW = scores_TW
    if BIASED:
        biased_TW += tl.load(bias_ptr + expert_W, mask=exists_W, other=0.0)[None, :]
    biased_TW = tl.where(biased_TW == biased_TW, biased_TW, float("inf"))  # a NaN is the largest
    eligible_TW = tl.broadcast_to(exists_W[None, :], biased_TW.shape)
    if G > 1:
        biased_TGX = tl.reshape(biased_TW, (BLOCK_T, WIDE_G, WIDE_X))
        exists_TGX = tl.reshape(eligible_TW, (BLOCK_T, WIDE_G, WIDE_X))
        kept_TG = best_groups(biased_TGX, exists_TGX, G, LIMITED, TOP2, WIDE_G, WIDE_X, BLOCK_T)
        kept_TGX = exists_TGX & kept_TG[:, :, None]
        eligible_TW = tl.reshape(kept_TGX, (BLOCK_T, WIDE_G * WIDE_X))

    rank_K = tl.arange(0, WIDE_K)
    weights_TK = tl.zeros((BLOCK_T, WIDE_K), tl.float32)
    experts_TK = tl.zeros((BLOCK_T, WIDE_K), tl.int32)
    for rank in tl.static_range(K):
        chosen_T = best_place(biased_TW, eligible_TW, place_W[None, :], 1)
        is_chosen_TW = place_W[None, :] == chosen_T[:, None]
        eligible_TW = eligible_TW & (place_W[None, :] != chosen_T[:, None])
        score_T = tl.sum(tl.where(is_chosen_TW, scores_TW, 0.0), 1)
        weights_TK = tl.where(rank_K[None, :] == rank, score_T[:, None], weights_TK)
        expert_T = chosen_T // WIDE_X * X + chosen_T % WIDE_X
        experts_TK = tl.where(rank_K[None, :] == rank, expert_T[:, None], experts_TK)
    if SIGMOID:
        weights_TK = weights_TK / (tl.sum(weights_TK, 1)[:, None] + 1e-20)
    stored_TK = (tokens < N)[:, None] & (rank_K < K)[None, :]
    results = tokens.to(tl.int64)[:, None] * K + rank_K[None, :]
    tl.store(weights_ptr + results, weights_TK * route_scale, mask=stored_TK)
    tl.store(experts_ptr + results, experts_TK.to(tl.int64), mask=stored_TK)


@triton.jit
def best_groups(
    biased_TGX, exists_TGX, G: tl.constexpr, LIMITED: tl.constexpr, TOP2: tl.constexpr,
    WIDE_G: tl.constexpr, WIDE_X: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """Which groups are kept, `[T, G]`: those with the largest sum of their best two, or best, scores."""
    place_X = tl.arange(0, WIDE_X)[None, None, :]
    place_G = tl.arange(0, WIDE_G)[None, :]
    visible_TGX = tl.where(exists_TGX, biased_TGX, float("-inf"))
    score_TG = tl.max(visible_TGX, 2)
    if TOP2:
        first_TG = best_place(biased_TGX, exists_TGX, place_X, 2)
        score_TG += tl.max(tl.where(place_X == first_TG[:, :, None], float("-inf"), visible_TGX), 2)
    left_TG = tl.broadcast_to(place_G < G, (BLOCK_T, WIDE_G))
    for _ in tl.static_range(LIMITED):
        left_TG = left_TG & (place_G != best_place(score_TG, left_TG, place_G, 1)[:, None])
    return (left_TG == 0) & (place_G < G)
