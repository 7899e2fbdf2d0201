"""SwiGLU into FP8: torch's own silu, then the quantisers that are tested elsewhere."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from deepseek_mini_kernels.quantize import quantize_activation, quantize_columns
from deepseek_mini_kernels.swiglu import swiglu_quantize, swiglu_quantize_columns
from kernel_helpers import DEVICE, any_order, both_backends, codes, guarded, normal

SHAPES = pytest.mark.parametrize("shape", [(1, 1), (70, 200), (128, 128), (33, 384)])


def assert_within_a_code(ours: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor]) -> None:
    """Exponentials differ in their last bits: a code of a few values, and 2^-20 of a factor."""
    steps = np.abs(codes(ours[0]).astype(int) - codes(wanted[0]).astype(int))
    assert steps.max() <= 1
    assert steps.mean() < 0.001
    assert ((ours[1] - wanted[1]).abs() <= wanted[1] * 2**-20).all()


@SHAPES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weighted", [False, True])
@both_backends
def test_rows_are_the_quantised_product_of_silu_gate_up_and_weight(backend, weighted, dtype, shape):
    gate_SI, up_SI = normal(*shape, dtype=dtype), normal(*shape, seed=1, dtype=dtype)
    weights_S = normal(shape[0], seed=2) if weighted else None
    inner_SI = F.silu(gate_SI.float()) * up_SI.float() * (1 if weights_S is None else weights_S[:, None])
    with any_order(0):
        ours = swiglu_quantize(gate_SI, up_SI, weights_S, backend=backend)
    assert_within_a_code(ours, quantize_activation(inner_SI, backend="naive"))


@pytest.mark.parametrize("counts", [None, [70, 0, 1, 129], [0, 3]])
@both_backends
def test_columns_are_those_of_the_same_product_expert_by_expert(backend, counts):
    rows = sum(counts) if counts else 150
    gate_SI, up_SI, weights_S = normal(rows, 200), normal(rows, 200, seed=1), normal(rows, seed=2)
    counts_E = guarded(torch.tensor(counts)) if counts else None
    inner_SI = F.silu(gate_SI) * up_SI * weights_S[:, None]
    with any_order(0):
        ours = swiglu_quantize_columns(gate_SI, up_SI, weights_S, counts_E, backend=backend)
    assert_within_a_code(ours, quantize_columns(inner_SI, counts_E, backend="naive"))


@both_backends
def test_gates_of_any_size_give_finite_results(backend):
    gate_SI = torch.tensor([[-3e38, -100.0, -88.0, 0.0, 88.0, 100.0, 1e30]], device=DEVICE)
    q_SI, scale_SY = swiglu_quantize(gate_SI, torch.ones_like(gate_SI), backend=backend)
    assert q_SI.float().isfinite().all()
    assert (q_SI.float() * scale_SY)[0, -1].item() == pytest.approx(1e30, rel=0.05)


@both_backends
def test_a_nan_spoils_its_own_tile_only(backend):
    gate_SI = normal(4, 256).clone()
    gate_SI[2, 200] = torch.nan
    q_SI, scale_SY = swiglu_quantize(gate_SI, normal(4, 256, seed=1), backend=backend)
    assert scale_SY.isnan().nonzero().tolist() == [[2, 1]]
    assert q_SI.float().isnan().sum() == 128


def test_powers_of_two_are_passed_on():
    scale = swiglu_quantize(normal(8, 128), normal(8, 128, seed=1), scales="pow2")[1]
    assert (torch.frexp(scale).mantissa == 0.5).all()


def test_inputs_that_differ_are_refused_with_a_reason():
    with pytest.raises(ValueError, match=r"gate \[2, 4\] .* and up \[2, 5\] .* must be alike"):
        swiglu_quantize(torch.zeros(2, 4), torch.zeros(2, 5))
    with pytest.raises(ValueError, match="one weight per row"):
        swiglu_quantize(torch.zeros(2, 4), torch.zeros(2, 4), torch.zeros(3))
