"""The FP8 layers on a GPU: each backend against the emulation, and all against exact products."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from deepseek_mini.config import Backend, Format, ModelConfig, PrecisionConfig, Scales
from deepseek_mini.model.experts import Mlp, RoutedExperts
from deepseek_mini.precision.backend import why_not
from deepseek_mini.precision.convert import convert
from kernel_helpers import DEVICE, normal

pytestmark = pytest.mark.gpu

TOKENS, DIM, INNER = 333, 512, 384
"""Tokens are no multiple of anything."""
ROUNDING = (0.01, 0.12)
"""Relative errors that E4M3 operands leave: 0.037 in one product of normal numbers, more after three."""
SAME_ARITHMETIC = 0.01
"""Results in BF16, and here and there another code where a result is quantised again."""
scales = pytest.mark.parametrize("scales", list(Scales))


def converted(build: Callable[[], nn.Module], backend: Backend, scales: Scales) -> nn.Module:
    precision = PrecisionConfig(Format.fp8, backend, scales)
    if obstacle := why_not(backend, precision, torch.device(DEVICE)):
        pytest.skip(obstacle)
    parent = nn.Sequential(build())
    assert convert(parent, precision)
    return parent[0]


def mlp() -> nn.Module:
    return filled(Mlp(DIM, INNER))


def experts() -> nn.Module:
    groups = {"n_expert_groups": 1, "n_limited_groups": 1, "n_activated_experts": 2}
    return filled(RoutedExperts(ModelConfig(dim=DIM, moe_inter_dim=INNER, n_routed_experts=6, **groups)))


def filled(module: nn.Module) -> nn.Module:
    for seed, parameter in enumerate(module.parameters(), start=10):
        with torch.no_grad():
            parameter.copy_(normal(*parameter.shape, seed=seed, size=0.05))
    return module.to(DEVICE)


def inputs_of(build: Callable[[], nn.Module]) -> tuple[Tensor, ...]:
    """Of the experts the fifth gets no token, and the last one gets all."""
    x_ND = normal(TOKENS, DIM, dtype=torch.bfloat16)
    if build is mlp:
        return (x_ND,)
    weights_NK = normal(TOKENS, 2, seed=1).sigmoid()
    first_N = torch.arange(TOKENS, device=DEVICE) % 4
    return x_ND, weights_NK, torch.stack((first_N, torch.full_like(first_N, 5)), 1)


def passes(module: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """Result, input gradient and weight gradients."""
    x, *rest = inputs
    x = x.clone().requires_grad_()
    with torch.autocast(DEVICE, torch.bfloat16):
        y = module(x, *rest)
    y.backward((1e-3 * normal(*y.shape, seed=2)).to(y.dtype))
    gradients = {name: parameter.grad for name, parameter in module.named_parameters()}
    return {"y": y.detach(), "dx": x.grad, **gradients}


def distances(ours: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, float]:
    assert ours.keys() == wanted.keys()
    return {
        name: ((ours[name].double() - other.double()).norm() / other.double().norm()).item()
        for name, other in wanted.items()
    }


layers = pytest.mark.parametrize("build", [mlp, experts])


@scales
@layers
def test_triton_does_what_the_emulation_does(build, scales):
    inputs = inputs_of(build)
    ours, wanted = (
        passes(converted(build, backend, scales), inputs) for backend in (Backend.triton, Backend.emulated)
    )
    assert max(distances(ours, wanted).values()) < SAME_ARITHMETIC


@scales
@layers
@pytest.mark.parametrize("backend", list(Backend)[1:])
def test_every_backend_rounds_as_e4m3_does_and_no_more(backend, build, scales):
    inputs = inputs_of(build)
    found = distances(passes(converted(build, backend, scales), inputs), passes(build(), inputs))
    assert all(ROUNDING[0] < distance < ROUNDING[1] for distance in found.values()), found


@pytest.mark.parametrize("backend", list(Backend)[1:])
def test_an_expert_without_tokens_gets_a_gradient_of_zeros(backend):
    found = passes(converted(experts, backend, Scales.fp32), inputs_of(experts))
    for name in ("w1", "w2", "w3"):
        assert found[name].isfinite().all()
        assert not found[name][4].any()
