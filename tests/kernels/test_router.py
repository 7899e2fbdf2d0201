"""The fused router against the model's gate, and the backends against one another."""

import pytest
import torch
from torch import Tensor

from deepseek_mini.config import Balance, GroupScore, ModelConfig, MoeConfig, ScoreFunction
from deepseek_mini.model.router import Gate
from deepseek_mini_kernels.router import Rule, route
from kernel_helpers import DEVICE, any_order, both_backends, guarded, needs_triton, normal

RULES = {
    "V3": (256, Rule(8, 8, 4, route_scale=2.5)),
    "V2": (160, Rule(6, 8, 3, score="softmax", group_score="max", route_scale=16.0)),
    "V2-Lite": (64, Rule(6, score="softmax")),
    "tiny": (32, Rule(4, 4, 2, route_scale=2.5)),
    "odd": (15, Rule(5, 3, 2)),
    "smallest": (1, Rule(1)),
}
rules = pytest.mark.parametrize(("n_experts", "rule"), RULES.values(), ids=RULES)


def gate_of(n_experts: int, rule: Rule, biased: bool) -> Gate:
    """The model's gate with the identity as its matrix, so that its input are the logits."""
    gate = Gate(
        ModelConfig(
            dim=n_experts,
            n_routed_experts=n_experts,
            n_activated_experts=rule.n_activated,
            n_expert_groups=rule.n_groups,
            n_limited_groups=rule.n_limited_groups,
            score_func=ScoreFunction(rule.score),
            group_score=GroupScore(rule.group_score),
            route_scale=rule.route_scale,
            moe=MoeConfig(balance=Balance.bias if biased else Balance.none),
        )
    )
    with torch.no_grad():
        gate.weight.copy_(torch.eye(n_experts))
        if gate.bias is not None:
            gate.bias.copy_(normal(n_experts, seed=9, size=0.1))
    return gate.to(DEVICE)


def routed(n_experts: int, rule: Rule, biased: bool, backend: str) -> tuple[tuple[Tensor, ...], ...]:
    """What the gate and the kernel say: weights, experts, scores and the gradient of the logits."""
    gate = gate_of(n_experts, rule, biased)
    bias_E = None if gate.bias is None else guarded(gate.bias)
    results = []
    for function in (gate, lambda logits: route(logits, bias_E, rule, backend)):
        logits_NE = normal(21, n_experts).requires_grad_()
        weights_NK, experts_NK, scores_NE = function(logits_NE)
        towards = normal(*weights_NK.shape, seed=3), normal(*scores_NE.shape, seed=4)
        ((weights_NK * towards[0]).sum() + (scores_NE * towards[1]).sum()).backward()
        results.append((weights_NK, experts_NK, scores_NE, logits_NE.grad))
    return tuple(results)


@rules
@pytest.mark.parametrize("biased", [False, True])
@both_backends
def test_router_does_what_the_models_gate_does_forward_and_backward(backend, biased, n_experts, rule):
    with any_order(0):
        theirs, ours = routed(n_experts, rule, biased, backend)
    assert torch.equal(ours[1], theirs[1])
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.dtype == other.dtype
        torch.testing.assert_close(mine, other, rtol=2e-6, atol=2e-6)


@both_backends
def test_of_equal_scores_the_first_expert_and_the_first_group_win(backend):
    experts_NK = route(torch.zeros(3, 32, device=DEVICE), None, Rule(4, 4, 2), backend)[1]
    assert experts_NK.tolist() == [[0, 1, 2, 3]] * 3


@both_backends
def test_groups_left_out_are_never_chosen_even_with_the_worst_bias(backend):
    bias_E = torch.full((32,), -5.0, device=DEVICE)
    experts_NK = route(normal(50, 32), bias_E, Rule(8, 4, 1), backend)[1]
    assert (experts_NK // 8 == experts_NK[:, :1] // 8).all()
    assert (experts_NK.sort(1).values.diff(dim=1) > 0).all()


@pytest.mark.parametrize("score", ["sigmoid", "softmax"])
@both_backends
def test_logits_that_are_not_finite_choose_distinct_experts_that_exist(backend, score):
    logits_NE = normal(6, 32).clone()
    logits_NE[0, 7] = torch.nan
    logits_NE[1] = torch.nan
    logits_NE[2, 3] = torch.inf
    logits_NE[3, :30] = -torch.inf
    logits_NE[4] = 1e30
    weights_NK, experts_NK, _ = route(logits_NE, None, Rule(4, 4, 2, score), backend)
    assert ((experts_NK >= 0) & (experts_NK < 32)).all()
    assert (experts_NK.sort(1).values.diff(dim=1) > 0).all()
    assert weights_NK[:2].isnan().any(1).all()
    assert weights_NK[5].isfinite().all()


@needs_triton
def test_triton_routes_many_tokens_as_naive_does():
    rule = RULES["V3"][1]
    logits_NE, bias_E = normal(300, 256, seed=5), normal(256, seed=6, size=0.05)
    ours, wanted = (route(logits_NE, bias_E, rule, backend) for backend in ("triton", "naive"))
    sure = (wanted[1] == ours[1]).all(1)
    assert sure.float().mean() > 0.99  # the rest are ties to the last bits of the exponential
    torch.testing.assert_close(ours[0][sure], wanted[0][sure], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("n_experts", "rule", "reason"),
    [
        (10, Rule(2, 4, 2), "10 experts do not divide into 4 groups"),
        (8, Rule(5, 4, 2), "n_activated=5 must lie between 1 and the 4 experts of 2 groups"),
        (8, Rule(2, 4, 5), "n_limited_groups=5 must lie between 1 and 4"),
        (4, Rule(2, 4, 2), "group_score=top2 needs 2 experts per group"),
    ],
)
def test_rules_that_do_not_fit_are_refused_with_a_reason(n_experts, rule, reason):
    with pytest.raises(ValueError, match=reason):
        route(torch.zeros(2, n_experts), None, rule)
