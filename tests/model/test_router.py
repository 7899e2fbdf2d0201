import math
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from deepseek_mini.config import Balance, GroupScore, ModelConfig, MoeConfig, ScoreFunction
from deepseek_mini.model.router import Gate, batch_balance_loss, sequence_balance_loss, update_bias
from model.helpers import (
    MARGIN,
    assert_close,
    assert_gradients_agree,
    expert_fields,
    fill,
    inputs,
    many,
    oracle_parameters,
    seeds,
    tiny,
)
from oracles import autodiff, router


def gate_with(scores: list[float], bias: list[float] | None = None, **changes: Any) -> Gate:
    """A gate that gives these sigmoid scores to the input [1]."""
    balance = Balance.none if bias is None else Balance.bias
    config = tiny(dim=1, n_routed_experts=len(scores), moe=MoeConfig(balance=balance), **changes)
    gate = Gate(config)
    with torch.no_grad():
        gate.weight.copy_(torch.tensor(scores).logit()[:, None])
        if bias is not None:
            gate.bias.copy_(torch.tensor(bias))
    return gate


def chosen(gate: Gate) -> set[int]:
    return set(gate(torch.ones(1, 1)).experts_NK[0].tolist())


@many
@given(expert_fields(), st.integers(1, 5), st.integers(1, 6), seeds)
def test_gate_agrees_with_oracle_forward_and_backward(
    fields: dict, dim: int, n_tokens: int, seed: int
) -> None:
    config = tiny(**fields, dim=dim)
    gate, x_ND = fill(Gate(config).double(), seed), inputs(seed + 1, n_tokens, dim)
    parameters, x = oracle_parameters(gate), autodiff.lift(x_ND.tolist())
    routes = [router.route(parameters["weight"], parameters.get("bias"), token, config) for token in x]
    assume(min(route.margin for route in routes) > MARGIN)

    routing = gate(x_ND)
    experts = routing.experts_NK.tolist()
    assert [set(row) for row in experts] == [set(route.weights) for route in routes]
    weights = [[route.weights[e] for e in row] for row, route in zip(experts, routes, strict=True)]
    assert_close(routing.weights_NK, weights, 1e-5)
    assert_close(routing.scores_NE, [route.scores for route in routes], 1e-5)

    coefficients_NK = inputs(seed + 2, *routing.weights_NK.shape).detach()
    coefficients_NE = inputs(seed + 3, *routing.scores_NE.shape).detach()
    loss = (routing.weights_NK * coefficients_NK).sum() + (routing.scores_NE * coefficients_NE).sum()
    loss.backward()
    flat = [w for row in weights for w in row] + [s for route in routes for s in route.scores]
    autodiff.backward(
        autodiff.dot(flat, coefficients_NK.flatten().tolist() + coefficients_NE.flatten().tolist())
    )
    assert_close(x_ND.grad, autodiff.gradients(x), 1e-5)
    assert_gradients_agree(gate, parameters, 1e-5)


@many
@given(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6), st.data())
def test_sequence_loss_agrees_with_oracle_forward_and_backward(
    n_rows: int, n_tokens: int, n_experts: int, data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, n_experts))
    scores_BTE = inputs(data.draw(seeds), n_rows, n_tokens, n_experts).detach().sigmoid().requires_grad_()
    scores = autodiff.lift(scores_BTE.tolist())
    margins = [router.largest([s.data for s in token], k)[1] for row in scores for token in row]
    assume(min(margins) > MARGIN)

    loss_B = sequence_balance_loss(scores_BTE, k)
    loss_B.sum().backward()
    loss = [router.sequence_balance_loss(row, k) for row in scores]
    autodiff.backward(sum(loss))
    assert_close(loss_B, loss, 1e-5)
    assert_close(scores_BTE.grad, autodiff.gradients(scores), 1e-5)


def test_sequence_loss_is_one_when_all_experts_are_alike() -> None:
    scores_BTE = torch.eye(8).expand(2, 8, 8) * 0.5 + 0.25
    torch.testing.assert_close(sequence_balance_loss(scores_BTE, 1), torch.ones(2))


def test_rows_of_the_sequence_loss_are_apart() -> None:
    """Each row favours its own experts: balanced over the batch, unbalanced in every sequence."""
    row = torch.tensor([0.9, 0.9, 0.1, 0.1]).expand(6, 4)
    scores_BTE = torch.stack([row, row.flip(-1)])
    torch.testing.assert_close(sequence_balance_loss(scores_BTE, 2), torch.full((2,), 1.8))


def test_batch_loss_is_that_of_all_rows_as_one_sequence() -> None:
    scores_BTE = inputs(5, 3, 4, 6).detach().sigmoid()
    one = router.sequence_balance_loss(scores_BTE.flatten(0, 1).tolist(), 2)
    assert_close(batch_balance_loss(scores_BTE, 2), [one] * 3, 1e-5)
    row = torch.tensor([0.9, 0.9, 0.1, 0.1]).expand(6, 4)
    torch.testing.assert_close(batch_balance_loss(torch.stack([row, row.flip(-1)]), 2), torch.ones(2))


@many
@given(st.lists(st.integers(0, 50), min_size=1, max_size=8), seeds, st.sampled_from([1e-3, 0.1]))
def test_bias_rule_agrees_with_oracle(counts: list[int], seed: int, rate: float) -> None:
    bias_E = inputs(seed, len(counts)).detach().float()
    expected = router.updated_bias(bias_E.tolist(), counts, rate)
    update_bias(bias_E, torch.tensor(counts), rate)
    assert_close(bias_E, expected, 1e-6)


def test_bias_moves_towards_the_underloaded_expert() -> None:
    bias_E = torch.zeros(4)
    update_bias(bias_E, torch.tensor([10, 10, 0, 0]), 0.001)
    torch.testing.assert_close(bias_E, torch.tensor([-0.001, -0.001, 0.001, 0.001]))


def test_expert_exactly_at_the_mean_is_recognised_at_any_size() -> None:
    """In float32 3 * 2^24 + 3 and in float64 3 * 2^53 + 3 cannot be told from their neighbours."""
    for scale in (1, 2**24 + 1, 2**53 + 1):
        bias_E = torch.zeros(3)
        update_bias(bias_E, torch.tensor([scale + 1, scale, scale - 1]), 0.5)
        assert bias_E.tolist() == [-0.5, 0.0, 0.5]


def test_equal_loads_leave_the_bias_alone() -> None:
    bias_E = torch.tensor([0.3, -0.1, 0.2])
    update_bias(bias_E, torch.tensor([7, 7, 7]), 0.1)
    torch.testing.assert_close(bias_E, torch.tensor([0.3, -0.1, 0.2]), rtol=0, atol=0)


def test_group_score_is_the_sum_of_two_or_the_best() -> None:
    scores = [0.9, 0.1, 0.1, 0.6, 0.6, 0.1]
    groups = {"n_expert_groups": 2, "n_limited_groups": 1, "n_activated_experts": 2}
    assert chosen(gate_with(scores, group_score=GroupScore.top2, **groups)) == {3, 4}
    by_best = chosen(gate_with([0.9, 0.2, 0.1, 0.6, 0.6, 0.1], group_score=GroupScore.max, **groups))
    assert by_best == {0, 1}


@pytest.mark.parametrize("k", [1, 4])
def test_group_score_takes_two_experts_whatever_the_number_activated(k: int) -> None:
    """The released code's rule; K_r / M of the paper's text would be 1 or 4 here."""
    scores = [0.9, 0.1, 0.1, 0.1, 0.7, 0.6, 0.02, 0.01]
    gate = gate_with(scores, n_expert_groups=2, n_limited_groups=1, n_activated_experts=k)
    assert chosen(gate) <= {4, 5, 6, 7}


def test_groups_are_scored_with_the_bias() -> None:
    groups = {"n_expert_groups": 2, "n_limited_groups": 1, "n_activated_experts": 2}
    assert chosen(gate_with([0.6, 0.6, 0.5, 0.5], [0.0, 0.0, 0.3, 0.3], **groups)) == {2, 3}


def test_experts_of_other_groups_stay_out_below_zero() -> None:
    """Masked with 0 instead of -inf, they would beat every expert of the kept group."""
    groups = {"n_expert_groups": 2, "n_limited_groups": 1, "n_activated_experts": 2}
    assert chosen(gate_with([0.9, 0.8, 0.1, 0.1], [-3.0] * 4, **groups)) == {0, 1}
    gate = fill(Gate(tiny(dim=8, n_routed_experts=32, n_expert_groups=4, n_limited_groups=2)), 0)
    gate.bias.sub_(5.0)
    experts_NK = gate(torch.randn(100, 8, generator=torch.Generator().manual_seed(0))).experts_NK
    assert max(len(set((row // 8).tolist())) for row in experts_NK) <= 2


def test_bias_chooses_but_does_not_weigh() -> None:
    gate = gate_with([0.5, 0.4, 0.3, 0.2], [-1.0, 0.0, 0.0, 1.0], n_expert_groups=1, n_limited_groups=1)
    routing = gate(torch.ones(1, 1))
    weights = dict(zip(routing.experts_NK[0].tolist(), routing.weights_NK[0].tolist(), strict=True))
    assert weights == pytest.approx({3: 2.5 * 0.2 / 0.6, 1: 2.5 * 0.4 / 0.6}, rel=1e-5)


def test_only_sigmoid_weights_are_normalised() -> None:
    x_ND = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    sums = {
        score: fill(Gate(tiny(score_func=score, route_scale=16.0)), 1)(x_ND).weights_NK.sum(-1)
        for score in ScoreFunction
    }
    torch.testing.assert_close(sums[ScoreFunction.sigmoid], torch.full((20,), 16.0))
    assert (sums[ScoreFunction.softmax] < 16.0 - 1e-3).all()


def test_bias_gets_no_gradient_and_is_no_parameter() -> None:
    gate = fill(Gate(tiny()), 0)
    gate(torch.randn(5, 4)).weights_NK.sum().backward()
    assert [name for name, _ in gate.named_parameters()] == ["weight"]
    assert gate.bias.grad is None
    assert not gate.bias.requires_grad


@pytest.mark.parametrize("balance", Balance)
def test_bias_exists_only_where_the_bias_rule_balances(balance: Balance) -> None:
    gate = Gate(tiny(moe=MoeConfig(balance=balance)))
    assert ("bias" in gate.state_dict()) == (balance is Balance.bias)


@pytest.mark.parametrize("cast", [lambda m: m.to(torch.bfloat16), nn.Module.half, nn.Module.bfloat16])
def test_bias_stays_float32_to_the_last_bit_when_the_model_is_cast(cast: Any) -> None:
    gate = fill(Gate(tiny()), 0)
    before = gate.bias.clone()
    cast(gate)
    assert gate.weight.dtype != torch.float32
    assert gate.bias.dtype == torch.float32
    assert torch.equal(gate.bias, before)
    assert torch.equal(gate.state_dict()["bias"], before)


def test_bias_follows_the_model_to_another_device() -> None:
    assert Gate(tiny()).to("meta").bias.device.type == "meta"
    assert Gate(tiny()).to("meta").to_empty(device="cpu").bias.device.type == "cpu"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gate_computes_in_float32_under_autocast(dtype: torch.dtype) -> None:
    gate, x_ND = fill(Gate(tiny(dim=64)), 0), torch.randn(9, 64, generator=torch.Generator().manual_seed(1))
    outside = gate(x_ND)
    with torch.autocast("cpu", dtype=dtype):
        inside = gate(x_ND)
    for a, b in zip(outside, inside, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    assert outside.weights_NK.dtype == outside.scores_NE.dtype == torch.float32
    assert outside.experts_NK.dtype == torch.int64


def test_gate_computes_in_float32_on_bf16_activations() -> None:
    gate = fill(Gate(tiny(dim=64)), 0)
    x_ND = torch.randn(9, 64, generator=torch.Generator().manual_seed(1)).bfloat16()
    assert torch.equal(gate(x_ND).scores_NE, gate(x_ND.float()).scores_NE)


def test_extreme_logits_give_finite_weights() -> None:
    gate = fill(Gate(ModelConfig(dim=8)), 0, std=1000.0)
    routing = gate(torch.randn(50, 8, generator=torch.Generator().manual_seed(0)))
    assert routing.weights_NK.isfinite().all()
    assert math.isfinite(sequence_balance_loss(routing.scores_NE[None], 8).item())
