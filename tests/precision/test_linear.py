"""The FP8 linear against the paper's formulas in float64, operand by operand."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deepseek_mini.config import Scales
from deepseek_mini.precision.arithmetic import Arithmetic
from deepseek_mini.precision.linear import AttentionOutput, Fp8Linear
from kernel_helpers import interpreter_only
from oracles import fp8
from precision.arithmetics import arithmetic, normal

SHAPES = [(1, 1, 1), (130, 70, 200), (257, 128, 256)]
"""Tokens, outputs, inputs."""


def operands(m: int, n: int, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """x, w and dy: sizes differ from token to token and channel to channel, gradients are small."""
    x_MK = normal(m, k) * normal(m, 1, seed=3).exp() * normal(1, k, seed=4).exp()
    return x_MK, normal(n, k, seed=1, size=0.02), normal(m, n, seed=2, size=1e-7) * normal(m, 1, seed=5).exp()


def run(kind: type[Fp8Linear], how: Arithmetic, x: Tensor, w: Tensor, dy: Tensor) -> list[Tensor]:
    """y, dx and dw."""
    linear = nn.Linear(x.shape[1], len(w), bias=False)
    with torch.no_grad():
        linear.weight.copy_(w)
    layer, x = kind(linear, how), x.clone().requires_grad_()
    y = layer(x)
    y.backward(dy)
    assert x.grad is not None
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.float32
    return [y.detach(), x.grad, layer.weight.grad]


def errors(ours: list[Tensor], wanted: tuple[np.ndarray, ...], inputs: tuple[Tensor, ...]) -> list[float]:
    """Largest errors of y, dx and dw, in units of the sums of their addends' magnitudes."""
    x, w, dy = (tensor.double().abs().numpy() for tensor in inputs)
    bounds = x @ w.T, dy @ w, dy.T @ x
    return [
        np.max(np.abs(a.double().numpy() - b) / bound)
        for a, b, bound in zip(ours, wanted, bounds, strict=True)
    ]


CASES = [
    *(
        (backend, shape, scales)
        for backend in ("emulated", "reference")
        for shape in SHAPES
        for scales in Scales
    ),
    pytest.param("triton", (130, 70, 200), "fp32", marks=interpreter_only),
    pytest.param("triton", (257, 128, 256), "pow2", marks=interpreter_only),
]


@pytest.mark.parametrize("kind", [Fp8Linear, AttentionOutput])
@pytest.mark.parametrize(("backend", "shape", "scales"), CASES)
def test_all_three_products_are_those_of_the_papers_quantised_operands(backend, shape, scales, kind):
    inputs = operands(*shape)
    ours = run(kind, arithmetic(backend, scales), *inputs)
    after_attention = kind is AttentionOutput
    wanted = fp8.linear(*(t.numpy() for t in inputs), scales, after_attention=after_attention)
    assert max(errors(ours, wanted, inputs)) < 1e-6


@pytest.mark.parametrize("step", fp8.LINEAR_STEPS)
@pytest.mark.parametrize("kind", [Fp8Linear, AttentionOutput])
def test_no_operand_is_left_unquantised(kind, step):
    """A linear that left a step out would be what the oracle is without it, which ours is far from."""
    inputs = operands(257, 128, 256)
    ours = run(kind, arithmetic("emulated", "fp32"), *inputs)
    wanted = fp8.linear(*(t.numpy() for t in inputs), "fp32", [step], kind is AttentionOutput)
    wrong = {"fprop": 0, "dgrad": 1, "wgrad": 2, "keep": 2}[step.split()[0]]
    far = errors(ours, wanted, inputs)
    assert far[wrong] > 1e-4
    assert max(error for i, error in enumerate(far) if i != wrong) < 1e-6


def test_results_are_rounded_to_bf16_under_autocast_and_nothing_else_is():
    x, w, dy = operands(130, 70, 200)
    plain = run(Fp8Linear, arithmetic("emulated", "fp32"), x, w, dy.bfloat16().float())
    with torch.autocast("cpu", torch.bfloat16):
        ours = run(Fp8Linear, arithmetic("emulated", "fp32"), x, w, dy.bfloat16())
    assert ours[0].dtype == torch.bfloat16
    assert torch.equal(ours[0], plain[0].bfloat16())
    assert torch.equal(ours[1], plain[1])
    assert torch.equal(ours[2], plain[2])


def test_leading_dimensions_are_kept_and_inputs_without_a_gradient_are_fine():
    linear = Fp8Linear(nn.Linear(6, 5, bias=False), arithmetic("emulated", "fp32"))
    y_BTN = linear(normal(2, 3, 6))
    y_BTN.sum().backward()
    assert y_BTN.shape == (2, 3, 5)
    flat = linear(normal(2, 3, 6).flatten(0, 1))
    assert torch.equal(y_BTN.flatten(0, 1), flat)


def test_an_input_that_several_linears_share_is_quantised_once_and_anew_when_it_changes(monkeypatch):
    how, calls = arithmetic("emulated", "fp32"), []
    quantise = how.quantizers.rows
    monkeypatch.setattr(how.quantizers, "rows", lambda *a: calls.append(a) or quantise(*a))
    layers = [Fp8Linear(nn.Linear(6, 5, bias=False), how) for _ in range(2)]
    x = normal(3, 6)
    for layer in layers:
        layer(x)
    assert len(calls) == 1
    x += 1
    for layer in layers:
        changed = layer(x)
    assert len(calls) == 2
    assert torch.equal(changed, layers[1](x.clone()))
    assert len(calls) == 3


def test_a_nan_in_a_token_reaches_its_own_row_and_no_other():
    x, w, _ = operands(130, 70, 200)
    x[7, 3] = torch.nan
    layer = Fp8Linear(nn.Linear(200, 70, bias=False), arithmetic("emulated", "fp32"))
    layer.weight.data.copy_(w)
    assert layer(x).isnan().any(1).nonzero().flatten().tolist() == [7]
