"""Moments in BF16: the update number by number, what is saved, and how a run goes on with them."""

import pytest
import torch
from torch import Tensor, nn

from deepseek_mini.config import Moments, Optimizer, OptimizerConfig
from deepseek_mini.model.transformer import build_model
from deepseek_mini.optim.adamw import AdamWBf16
from deepseek_mini.optim.build import build_optimizers
from deepseek_mini.optim.muon import Muon
from deepseek_mini.training.checkpoint import RunState, load_checkpoint, save_checkpoint
from oracles import optimizers as oracle
from small_model import small_model_config

CPU = torch.device("cpu")
STEPS = 12
GROUP = {"weight_decay": 0.1, "lr_scale": 1.0}


def gradients(*shape: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(*shape, generator=generator) * 10.0 ** (i % 3) for i in range(STEPS)]


def test_adamw_keeps_its_moments_rounded_and_computes_with_them_in_full():
    parameter = nn.Parameter(torch.linspace(-1, 1, 6))
    start, given = parameter.tolist(), gradients(6)
    adamw = AdamWBf16([{"params": [parameter], **GROUP}], 0.01, (0.9, 0.95), 1e-8)
    for gradient in given:
        parameter.grad = gradient
        adamw.step()
    state = adamw.state[parameter]
    assert state["exp_avg"].dtype == state["exp_avg_sq"].dtype == torch.bfloat16
    for i, weight in enumerate(start):
        own = [gradient[i].item() for gradient in given]
        wanted = oracle.adamw(weight, own, 0.01, (0.9, 0.95), 1e-8, 0.1)
        assert parameter[i].item() == pytest.approx(wanted[0], rel=1e-6)
        assert (state["exp_avg"][i].item(), state["exp_avg_sq"][i].item()) == wanted[1:]
        exact = oracle.adamw(weight, own, 0.01, (0.9, 0.95), 1e-8, 0.1, keep=float)
        assert parameter[i].item() != pytest.approx(exact[0], rel=1e-6)


def test_but_for_the_rounding_it_is_pytorchs_adamw():
    ours, theirs = (nn.Parameter(torch.linspace(-1, 1, 6)) for _ in range(2))
    adamw = AdamWBf16([{"params": [ours], **GROUP}], 0.01, (0.9, 0.95), 1e-8)
    adamw.moment_dtype = torch.float32
    peer = torch.optim.AdamW([theirs], 0.01, betas=(0.9, 0.95), weight_decay=0.1)
    for gradient in gradients(6):
        ours.grad, theirs.grad = gradient, gradient.clone()
        adamw.step()
        peer.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


def test_muon_keeps_its_momentum_rounded():
    parameter, given = nn.Parameter(torch.ones(2, 3)), gradients(2, 3)
    muon = Muon([{"params": [parameter], **GROUP}], 0.01, 0.95, 0.1, torch.bfloat16)
    for gradient in given:
        parameter.grad = gradient
        muon.step()
    kept = muon.state[parameter]["momentum"]
    assert kept.dtype == torch.bfloat16
    for i, j in ((0, 0), (1, 2)):
        assert kept[i, j].item() == oracle.momentum([g[i, j].item() for g in given], 0.95)


def trained(name: Optimizer, moments: Moments, steps: int = 3):
    model = build_model(small_model_config(), CPU, seed=0)
    optimizers = build_optimizers(model, OptimizerConfig(name=name, moments=moments))
    train(model, optimizers, range(steps))
    return model, optimizers


def train(model: nn.Module, optimizers: list[torch.optim.Optimizer], steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        for optimizer in optimizers:
            optimizer.step()


def kept_bytes(optimizers: list[torch.optim.Optimizer]) -> int:
    states = [state for optimizer in optimizers for state in optimizer.state.values()]
    return sum(value.nbytes for state in states for key, value in state.items() if key != "step")


@pytest.mark.parametrize("name", Optimizer)
def test_bf16_halves_the_memory_of_the_moments_and_leaves_the_weights_in_fp32(name):
    model, optimizers = trained(name, Moments.bf16)
    assert 2 * kept_bytes(optimizers) == kept_bytes(trained(name, Moments.fp32)[1])
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


@pytest.mark.parametrize("name", Optimizer)
def test_a_run_goes_on_bit_for_bit(name, tmp_path):
    model, optimizers = trained(name, Moments.bf16)
    save_checkpoint(tmp_path, model, optimizers, RunState(3, 3, "abc"), {}, keep=1)
    train(model, optimizers, range(3, 5))
    other = build_model(small_model_config(), CPU, seed=1)
    others = build_optimizers(other, OptimizerConfig(name=name, moments=Moments.bf16))
    load_checkpoint(tmp_path / "step_00000003", other, others, CPU)
    train(other, others, range(3, 5))
    for (key, ours), (_, wanted) in zip(other.state_dict().items(), model.state_dict().items(), strict=True):
        assert torch.equal(ours, wanted), key


@pytest.mark.parametrize("before", Moments)
def test_moments_of_the_other_kind_are_taken_over_and_not_mixed(before, tmp_path):
    model, optimizers = trained(Optimizer.muon, before)
    save_checkpoint(tmp_path, model, optimizers, RunState(3, 3, "abc"), {}, keep=1)
    after = Moments.fp32 if before is Moments.bf16 else Moments.bf16
    other, others = trained(Optimizer.muon, after)
    load_checkpoint(tmp_path / "step_00000003", other, others, CPU)
    train(other, others, range(3, 4))
    kinds = {
        value.dtype for o in others for s in o.state.values() for key, value in s.items() if key != "step"
    }
    assert kinds == {torch.bfloat16 if after is Moments.bf16 else torch.float32}


@pytest.mark.parametrize("name", Optimizer)
def test_an_update_that_is_void_changes_nothing(name):
    model, optimizers = trained(name, Moments.bf16, steps=0)
    before = [parameter.clone() for parameter in model.parameters()]
    for optimizer in optimizers:
        optimizer.found_inf = torch.ones(())
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, torch.nan)
    for optimizer in optimizers:
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all((value == 0).all() for o in optimizers for s in o.state.values() for value in s.values())
