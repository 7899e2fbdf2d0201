"""Under autocast a step casts each weight once, and its gradients are those of casts at every use."""

import weakref
from collections import Counter
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from deepseek_mini.config import Backend, Format, OptimizerConfig, PrecisionConfig, Recompute
from deepseek_mini.data import Batch
from deepseek_mini.model.recompute import recompute
from deepseek_mini.model.transformer import Transformer, build_model
from deepseek_mini.optim.build import build_optimizers
from deepseek_mini.optim.schedule import StepPlan
from deepseek_mini.precision.convert import convert
from deepseek_mini.training import step
from small_model import small_model_config

PLAN = StepPlan(1, 0, 4, 0, lr=1e-3, mtp_weight=0.3, bias_update_rate=0.01)
AUTOCAST = torch.autocast("cpu", torch.bfloat16)


class Casts(TorchDispatchMode):
    """How often each parameter is cast to bfloat16, and the casts that are still there."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.names = {parameter.data_ptr(): name for name, parameter in model.named_parameters()}
        self.counts: Counter[str] = Counter()
        self.alive: weakref.WeakSet[Tensor] = weakref.WeakSet()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        is_cast = func is torch.ops.aten._to_copy.default and result.dtype is torch.bfloat16
        if is_cast and (name := self.names.get(args[0].data_ptr())):
            self.counts[name] += 1
            self.alive.add(result)
        return result


def build(again: Recompute, format: Format = Format.bf16) -> Transformer:
    model = build_model(small_model_config(depth=1), torch.device("cpu"), 0)
    if format is Format.fp8:
        convert(model, PrecisionConfig(format, Backend.emulated))
    recompute(model, again)
    return model


def run_step(model: Transformer) -> step.StepResult:
    """A step of two micro-batches."""
    tokens_BS = torch.randint(61, (4, 18), generator=torch.Generator().manual_seed(5))
    batch = Batch(tokens_BS, torch.arange(18).div(7, rounding_mode="floor").expand(4, -1))
    optimizers = build_optimizers(model, OptimizerConfig())
    return step.train_step(model, optimizers, batch, PLAN, 2, 1.0, AUTOCAST)


@pytest.mark.parametrize("again", Recompute)
def test_each_weight_is_cast_once_in_a_step(again: Recompute) -> None:
    model = build(again)
    with Casts(model) as casts:
        run_step(model)
    others = ("norm.weight", "gate.weight", "embed.weight")
    weights = [name for name, _ in model.named_parameters() if not name.endswith(others)]
    assert len(weights) == 43
    assert casts.counts == dict.fromkeys(weights, 1)


@pytest.mark.parametrize(
    ("again", "format"), [(again, Format.bf16) for again in Recompute] + [(Recompute.none, Format.fp8)]
)
def test_no_bit_of_the_gradients_differs_from_that_of_casts_at_every_use(
    again: Recompute, format: Format, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = build(again, format)
    held_result = run_step(held)
    monkeypatch.setattr(step, "holding_casts", lambda *_: nullcontext())
    fresh = build(again, format)
    with Casts(fresh) as casts:
        fresh_result = run_step(fresh)
    assert casts.counts["head.weight"] == 4  # this is the other way: two heads in two micro-batches
    assert torch.equal(held_result.loss, fresh_result.loss)
    for (name, a), b in zip(held.named_parameters(), fresh.parameters(), strict=True):
        assert a.grad is not None, name
        assert b.grad is not None, name
        assert torch.equal(a.grad, b.grad), name
        assert torch.equal(a, b), name


@pytest.mark.parametrize("again", Recompute)
def test_the_casts_are_gone_before_the_gradients_are_clipped(
    again: Recompute, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, real, left = build(again), step.clip_grad_norm_, []
    casts = Casts(model)
    monkeypatch.setattr(step, "clip_grad_norm_", lambda *args: left.append(len(casts.alive)) or real(*args))
    with casts:
        run_step(model)
    assert len(casts.counts) == 43
    assert left == [0]


def test_after_a_step_that_fails_modules_have_their_own_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(Recompute.none)
    monkeypatch.setattr(model, "losses", lambda *_: model.no_such_thing)
    with pytest.raises(AttributeError, match="no_such_thing"):
        run_step(model)
    assert model.head.weight is dict(model.named_parameters())["head.weight"]
