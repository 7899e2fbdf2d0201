"""The mixture-of-experts layer without its residual: shared experts plus gated routed experts (Eq. 12)."""

from typing import Any, NamedTuple

from oracles.autodiff import Number, plain
from oracles.layers import Matrix, Parameters, add, mlp, part
from oracles.router import largest, route, sequence_balance_loss


class Moe(NamedTuple):
    outputs: Matrix
    counts: list[int]
    """Tokens that each expert received."""
    balance_loss: Number
    margin: float
    """By how much the closest of all choices was made."""


def moe(parameters: Parameters, x: Matrix, c: Any) -> Moe:
    """One sequence through the layer."""
    experts = [
        {f"{name}.weight": parameters[f"experts.{name}"][e] for name in ("w1", "w2", "w3")}
        for e in range(c.n_routed_experts)
    ]
    routes = [route(parameters["gate.weight"], parameters.get("gate.bias"), token, c) for token in x]
    outputs = []
    for token, choice in zip(x, routes, strict=True):
        routed = [[gate * y for y in mlp(experts[e], token)] for e, gate in choice.weights.items()]
        shared = [mlp(part(parameters, "shared_experts."), token)] if c.n_shared_experts else []
        outputs.append(add(*routed, *shared))
    scores = [choice.scores for choice in routes]
    k = c.n_activated_experts
    return Moe(
        outputs,
        [sum(e in choice.weights for choice in routes) for e in range(c.n_routed_experts)],
        sequence_balance_loss(scores, k),
        min(min(choice.margin, largest([plain(s) for s in choice.scores], k)[1]) for choice in routes),
    )
