import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from deepseek_mini.config import BalanceScope, ModelConfig, MoeConfig, ScoreFunction
from deepseek_mini.model.experts import RoutedExperts
from deepseek_mini.model.moe import MoE
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
from oracles import autodiff
from oracles import moe as oracle


def filled(config: ModelConfig, seed: int = 0) -> MoE:
    moe = MoE(config).double()
    fill(moe, seed)
    return moe


@many
@given(expert_fields(), st.integers(1, 4), st.integers(1, 3), st.integers(1, 4), seeds)
def test_moe_agrees_with_oracle_forward_and_backward(
    fields: dict, dim: int, n_rows: int, n_tokens: int, seed: int
) -> None:
    config = tiny(**fields, dim=dim)
    moe, x_BTD = filled(config, seed), inputs(seed + 1, n_rows, n_tokens, dim)
    parameters, x = oracle_parameters(moe), autodiff.lift(x_BTD.tolist())
    rows = [oracle.moe(parameters, row, config) for row in x]
    assume(min(row.margin for row in rows) > MARGIN)

    y_BTD, stats = moe(x_BTD)
    assert_close(y_BTD, [row.outputs for row in rows], 1e-5)
    assert stats.counts_E.tolist() == [sum(counts) for counts in zip(*(r.counts for r in rows), strict=True)]
    assert_close(stats.balance_loss_B, [row.balance_loss for row in rows], 1e-5)

    weight_BTD = inputs(seed + 2, *y_BTD.shape).detach()
    ((y_BTD * weight_BTD).sum() + 3 * stats.balance_loss_B.sum()).backward()
    flat = [number for row in rows for token in row.outputs for number in token]
    balance = 3 * sum(row.balance_loss for row in rows)
    autodiff.backward(autodiff.dot(flat, weight_BTD.flatten().tolist()) + balance)
    assert_close(x_BTD.grad, autodiff.gradients(x), 1e-5)
    assert_gradients_agree(moe, parameters, 1e-5)


def test_no_token_is_dropped_even_if_all_choose_the_same_experts() -> None:
    config = tiny(n_expert_groups=1, n_limited_groups=1)
    moe = filled(config)
    moe.gate.bias.copy_(torch.tensor([9.0, 9.0, 0.0, 0.0]))
    _, stats = moe(inputs(1, 3, 7, config.dim))
    assert stats.counts_E.tolist() == [21, 21, 0, 0]
    assert stats.counts_E.dtype == torch.int64


def test_counts_sum_to_tokens_times_experts_per_token() -> None:
    config = tiny(n_routed_experts=16, n_activated_experts=3, n_expert_groups=4, n_limited_groups=2)
    _, stats = filled(config)(inputs(1, 3, 7, config.dim))
    assert stats.counts_E.sum() == 3 * 7 * 3


def test_expert_without_tokens_gets_a_gradient_of_zero() -> None:
    config = tiny(n_expert_groups=1, n_limited_groups=1)
    moe = filled(config)
    moe.gate.bias.copy_(torch.tensor([9.0, 9.0, 0.0, 0.0]))
    moe(inputs(1, 2, 3, config.dim))[0].sum().backward()
    for name in ("w1", "w2", "w3"):
        grad_E = getattr(moe.experts, name).grad.flatten(1).abs().sum(1)
        assert (grad_E[:2] > 0).all()
        assert (grad_E[2:] == 0).all()


def test_experts_without_any_token_give_gradients_of_zero() -> None:
    config = tiny()
    experts = fill(RoutedExperts(config), 0)
    weights_NK, experts_NK = torch.zeros(0, 2), torch.zeros(0, 2, dtype=torch.int64)
    y_ND = experts(torch.zeros(0, config.dim), weights_NK, experts_NK)
    assert y_ND.shape == (0, config.dim)
    y_ND.sum().backward()
    assert all((p.grad == 0).all() for p in experts.parameters())


def test_order_of_tokens_and_rows_does_not_matter() -> None:
    config = tiny(n_routed_experts=8, n_expert_groups=4, n_limited_groups=2)
    moe, x_BTD = filled(config), inputs(1, 4, 5, config.dim).detach()
    y_BTD, stats = moe(x_BTD)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    shuffled_BTD, shuffled_stats = moe(x_BTD.flatten(0, 1)[order].view_as(x_BTD))
    torch.testing.assert_close(shuffled_BTD.flatten(0, 1), y_BTD.flatten(0, 1)[order])
    assert torch.equal(shuffled_stats.counts_E, stats.counts_E)
    split = [moe(x_BTD[b : b + 1]) for b in range(4)]
    torch.testing.assert_close(torch.cat([y for y, _ in split]), y_BTD)
    torch.testing.assert_close(torch.cat([s.balance_loss_B for _, s in split]), stats.balance_loss_B)


def test_with_the_scope_of_the_batch_all_rows_share_one_balance_loss() -> None:
    by_row = filled(tiny())
    by_batch = filled(tiny(moe=MoeConfig(balance_scope=BalanceScope.batch)))
    x_BTD = inputs(1, 4, 5, by_row.gate.weight.shape[1]).detach()
    losses_B, shared_B = (moe(x_BTD)[1].balance_loss_B for moe in (by_row, by_batch))
    assert len(set(shared_B.tolist())) == 1
    assert len(set(losses_B.tolist())) == 4
    torch.testing.assert_close(shared_B[:1], by_row(x_BTD.flatten(0, 1)[None])[1].balance_loss_B)


@pytest.mark.parametrize("score_func", ScoreFunction)
def test_gate_learns_from_the_output_and_from_the_balance_loss(score_func: ScoreFunction) -> None:
    for part in (lambda y, stats: y.sum(), lambda y, stats: stats.balance_loss_B.sum()):
        config = tiny(score_func=score_func)
        moe = filled(config)
        part(*moe(inputs(1, 2, 5, config.dim))).backward()
        assert moe.gate.weight.grad.abs().sum() > 0


def test_balance_loss_does_not_reach_the_experts() -> None:
    config = tiny()
    moe = filled(config)
    moe(inputs(1, 2, 5, config.dim))[1].balance_loss_B.sum().backward()
    assert all(p.grad is None or (p.grad == 0).all() for p in moe.experts.parameters())


def test_shared_experts_are_one_mlp_without_a_gate() -> None:
    moe = MoE(tiny(n_shared_experts=2))
    assert {name: tuple(p.shape) for name, p in moe.shared_experts.named_parameters()} == {
        "w1.weight": (6, 4),
        "w2.weight": (4, 6),
        "w3.weight": (6, 4),
    }
    assert MoE(tiny(n_shared_experts=0)).shared_experts is None


def test_route_scale_multiplies_the_routed_experts_only() -> None:
    x_BTD = inputs(1, 2, 3, 4).detach()
    outputs = []
    for scale in (1.0, 2.5):
        moe = filled(tiny(route_scale=scale))
        shared_BTD = moe.shared_experts(x_BTD)
        outputs.append(moe(x_BTD)[0] - shared_BTD)
    torch.testing.assert_close(outputs[1], 2.5 * outputs[0], rtol=1e-6, atol=1e-9)


def test_repeated_backward_passes_are_bitwise_equal() -> None:
    config = tiny(dim=32, moe_inter_dim=16, n_routed_experts=16)
    moe, x_BTD = fill(MoE(config), 0), inputs(1, 4, 64, 32).detach().float()
    runs = []
    for _ in range(3):
        moe.zero_grad()
        y_BTD, stats = moe(x_BTD)
        (y_BTD.square().mean() + stats.balance_loss_B.sum()).backward()
        runs.append({name: p.grad.clone() for name, p in moe.named_parameters()})
    for run in runs[1:]:
        assert all(torch.equal(run[name], grad) for name, grad in runs[0].items())
