"""What is made again in the backward pass is what the forward pass had, and is not kept meanwhile."""

from functools import cache

import pytest
import torch
from torch import Tensor

from deepseek_mini.config import Attention, MtpConfig, Recompute
from deepseek_mini.model.experts import RoutedExperts
from deepseek_mini.model.recompute import recompute
from deepseek_mini.model.router import Gate
from deepseek_mini.model.transformer import Losses, Transformer
from live_memory import LiveMemory
from model.helpers import fill, grouped_compute, tiny, tokens

KINDS = [(attention, 3) for attention in Attention] + [(Attention.mla, 0)]
"""Attention and rank of its query latent."""


def build(again: Recompute, **changes) -> Transformer:
    config = tiny(dim=16, moe_inter_dim=8, n_layers=3, n_routed_experts=16, n_activated_experts=4, **changes)
    config.mtp = MtpConfig(depth=2)
    model = Transformer(config)
    fill(model, 0, std=0.3)
    recompute(model, again)
    return model


def losses(model: Transformer, mask: bool = True, length: int = 40) -> Losses:
    documents_BS = torch.arange(length).div(11, rounding_mode="floor").expand(3, -1)
    return model.losses(tokens(3, length), documents_BS, mask)


def total(found: Losses) -> Tensor:
    return found.main_sum + 0.3 * sum(found.mtp_sums) + 0.2 * found.balance_sum


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("attention", "q_lora_rank"), KINDS)
@pytest.mark.parametrize("again", [Recompute.v3, Recompute.full])
def test_no_bit_of_losses_counts_or_gradients_changes(again, attention, q_lora_rank, dtype) -> None:
    assert_no_bit_changes(again, dtype, attention=attention, q_lora_rank=q_lora_rank)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_bit_changes_with_the_experts_of_a_gpu(dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RoutedExperts, "compute", grouped_compute)
    assert_no_bit_changes(Recompute.v3, dtype)


def assert_no_bit_changes(again: Recompute, dtype: torch.dtype, **changes) -> None:
    results = []
    for choice in (Recompute.none, again):
        model = build(choice, **changes)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
            found = losses(model)
        total(found).backward()
        results.append((found, {name: p.grad for name, p in model.named_parameters()}))
    (kept, kept_grads), (made, made_grads) = results
    assert torch.equal(total(kept), total(made))
    assert torch.equal(kept.counts_LE, made.counts_LE)
    assert kept.counts_LE.sum(1).tolist() == [3 * 39 * 4, 3 * 39 * 4, 3 * 38 * 4, 3 * 37 * 4]
    assert all(torch.equal(kept_grads[name], grad) for name, grad in made_grads.items())


def calls_of_a_step(again: Recompute) -> dict[str, int]:
    """How often each linear layer, gate and stack of experts runs in a forward and a backward pass."""
    model = build(again)
    calls: dict[str, int] = {}

    def count(name: str) -> None:
        calls[name] = calls.get(name, 0) + 1

    for name, module in model.named_modules():
        if isinstance(module, (torch.nn.Linear, Gate, RoutedExperts)):
            module.register_forward_hook(lambda *_, name=name: count(name))
    total(losses(model)).backward()
    return calls


def test_v3_runs_the_up_projections_a_second_time_and_no_other_product() -> None:
    for name, n_calls in calls_of_a_step(Recompute.v3).items():
        assert n_calls == (2 if name.endswith(("wq_b", "wkv_b")) else 1), name


def test_full_runs_each_block_a_second_time() -> None:
    calls = calls_of_a_step(Recompute.full)
    assert {n for name, n in calls.items() if name.endswith(("wq_a", "wkv_b", "gate", "experts"))} == {2}
    assert {n for name, n in calls.items() if name.endswith("eh_proj")} == {1}


@cache
def kept_bytes(again: Recompute, grouped: bool = False) -> int:
    """What the forward pass leaves behind for the backward pass; with `grouped` experts it is a GPU's."""
    model = build(again)
    with pytest.MonkeyPatch.context() as patch, LiveMemory(*model.parameters(), *model.buffers()) as memory:
        if grouped:
            patch.setattr(RoutedExperts, "compute", grouped_compute)
        found = losses(model)
        kept = memory.bytes()
        total(found).backward()
        del found
        model.zero_grad()
        assert memory.bytes() == 0, "the backward pass leaves something behind"
    return kept


@pytest.mark.parametrize("grouped", [False, True])
def test_v3_keeps_no_result_of_norms_up_projections_and_swiglu(grouped: bool) -> None:
    config = build(Recompute.none).config
    heads = config.n_heads * (2 * config.qk_head_dim + config.v_head_dim)
    block = 2 * config.dim + config.q_lora_rank + config.kv_lora_rank + heads
    swiglu = 2 * config.moe_inter_dim  # of the shared expert; the loop over routed ones keeps neither anyway
    if grouped:
        swiglu += 3 * config.n_activated_experts * config.moe_inter_dim
    n_main, n_mtp = 3 * 39, 3 * 38 + 3 * 37
    dropped = n_main * (3 * block + 2 * config.inter_dim + 2 * swiglu)
    dropped += n_mtp * (2 * config.dim + block + swiglu)
    saved = kept_bytes(Recompute.none, grouped) - kept_bytes(Recompute.v3, grouped)
    assert 4 * dropped <= saved < 1.2 * 4 * dropped  # and what norms keep besides


def test_full_keeps_less_than_v3_and_v3_less_than_none() -> None:
    none, v3, full = (kept_bytes(choice) for choice in Recompute)
    assert full < 0.4 * none
    assert v3 < 0.8 * none
