"""The gate (V3 Eq. 12-16), the bias rule (section 2.1.2) and the sequence-wise loss (Eq. 17-20).

`c` is anything with the field names of DeepSeek's config_671B.json, and `group_score`.
"""

import math
from typing import Any, NamedTuple

from oracles.autodiff import Number, plain
from oracles.layers import Matrix, Vector, linear, sigmoid, softmax


class Route(NamedTuple):
    """Where one token goes."""

    weights: dict[int, Number]
    """Gate value of each chosen expert."""
    scores: Vector
    """s of every expert."""
    margin: float
    """By how much the closest choice was made: near 0, rounding may choose otherwise."""


def route(weight: Matrix, bias: list[float] | None, x: Vector, c: Any) -> Route:
    """Route the token `x` by the gate's `weight`, one row per expert."""
    scores = (softmax if c.score_func == "softmax" else lambda z: [sigmoid(n) for n in z])(linear(weight, x))
    biased = [plain(s) + b for s, b in zip(scores, bias or [0.0] * len(scores), strict=True)]

    size = c.n_routed_experts // c.n_expert_groups
    groups = [biased[g * size : (g + 1) * size] for g in range(c.n_expert_groups)]
    n_best = 2 if c.group_score == "top2" else 1
    group_scores = [sum(sorted(group, reverse=True)[:n_best]) for group in groups]
    kept, group_margin = largest(group_scores, c.n_limited_groups) if len(groups) > 1 else ([0], math.inf)
    reachable = [s if e // size in kept else -math.inf for e, s in enumerate(biased)]
    chosen, margin = largest(reachable, c.n_activated_experts)

    total = sum(scores[e] for e in chosen) if c.score_func == "sigmoid" else 1.0
    weights = {e: scores[e] / total * c.route_scale for e in chosen}
    return Route(weights, scores, min(margin, group_margin))


def largest(numbers: list[float], k: int) -> tuple[list[int], float]:
    """Indices of the k largest numbers, and how far the k-th is above the next one."""
    order = sorted(range(len(numbers)), key=lambda i: numbers[i], reverse=True)
    margin = numbers[order[k - 1]] - numbers[order[k]] if k < len(numbers) else math.inf
    return order[:k], margin


def updated_bias(bias: list[float], counts: list[int], rate: float) -> list[float]:
    """b_i + rate * sign(mean(c) - c_i), compared in integers so that an expert at the mean stays."""
    total = sum(counts)
    signs = [(total > len(counts) * count) - (total < len(counts) * count) for count in counts]
    return [b + rate * sign for b, sign in zip(bias, signs, strict=True)]


def sequence_balance_loss(scores: Matrix, k: int) -> Number:
    """Eq. 17-20 without alpha, for the scores of one sequence: 1 at perfect balance."""
    n_tokens, n_experts = len(scores), len(scores[0])
    loss = 0.0
    for i in range(n_experts):
        chosen = sum(i in largest([plain(s) for s in row], k)[0] for row in scores)
        f_i = n_experts / (k * n_tokens) * chosen  # Eq. 18
        p_i = sum(row[i] / sum(row) for row in scores) / n_tokens  # Eq. 19, 20
        loss = loss + f_i * p_i
    return loss
