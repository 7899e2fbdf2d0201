"""What the other files of this folder, which run on a GPU where there is one, do not ask of it."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.functional import ScalingType

from deepseek_mini_kernels import quantize
from deepseek_mini_kernels.backend import choose
from deepseek_mini_kernels.grouped_matmul import grouped_matmul, grouped_wgrad
from deepseek_mini_kernels.matmul import block_scaled_matmul
from deepseek_mini_kernels.router import Rule, route
from deepseek_mini_kernels.swiglu import swiglu_quantize, swiglu_quantize_columns
from kernel_helpers import DEVICE, PRODUCT_TOLERANCE, assert_same, both_backends, normal

pytestmark = pytest.mark.gpu

M, N, K, EXPERTS = 1000, 640, 1152, 5
"""Large enough for many programs at a time; rows end within a tile."""


def all_ops(backend: str) -> dict[str, tuple[Tensor, ...]]:
    """Results of every public op, on the same inputs."""
    x_MK, y_MN, w_NK = normal(M, K), normal(M, N, seed=1), normal(N, K, seed=2, size=0.02)
    w_ENK, logits_ME = normal(EXPERTS, N, K, seed=3, size=0.02), normal(M, 256, seed=4)
    counts_E = torch.tensor([700, 0, 1, 290, 9], device=DEVICE)
    x, w = (
        quantize.quantize_activation(x_MK, backend="naive"),
        quantize.quantize_weight(w_NK, backend="naive"),
    )
    stack = quantize.quantize_weight(w_ENK, backend="naive")
    x_columns, y_columns = (quantize.quantize_columns(t, counts_E, backend="naive") for t in (x_MK, y_MN))
    gate_MN, up_MN, weights_M = y_MN, normal(M, N, seed=5), normal(M, seed=6)
    how = {"backend": backend}
    return {
        "quantize_activation": quantize.quantize_activation(x_MK, **how),
        "quantize_columns": quantize.quantize_columns(x_MK, counts_E, **how),
        "quantize_rows_and_columns": quantize.quantize_rows_and_columns(x_MK, counts_E, **how),
        "requantize_columns": quantize.requantize_columns(*x, counts_E, **how),
        "quantize_weight": quantize.quantize_weight(w_ENK, **how),
        "quantize_weight_and_transpose": quantize.quantize_weight_and_transpose(w_NK, **how),
        "block_scaled_matmul": (block_scaled_matmul(*x, *w, **how),),
        "grouped_matmul": (grouped_matmul(*x, *stack, counts_E, **how),),
        "grouped_wgrad": (grouped_wgrad(*y_columns, *x_columns, counts_E, **how),),
        "swiglu_quantize": swiglu_quantize(gate_MN, up_MN, weights_M, **how),
        "swiglu_quantize_columns": swiglu_quantize_columns(gate_MN, up_MN, weights_M, counts_E, **how),
        "route": route(logits_ME, normal(256, seed=7, size=0.01), Rule(8, 8, 4, route_scale=2.5), **how),
    }


def test_a_gpu_for_fp8_runs_triton_of_itself():
    assert choose(normal(1, 128)) == "triton"


@both_backends
def test_every_op_repeats_to_the_last_bit(backend):
    first, second = all_ops(backend), all_ops(backend)
    for name, results in first.items():
        assert_same(results, second[name])


@pytest.mark.parametrize("scales", ["fp32", "pow2"])
def test_quantisers_give_the_bits_of_the_reference_on_a_cpu(scales):
    x_MK, w_NK = normal(M, K, dtype=torch.bfloat16), normal(N, K, seed=1)
    counts_E = torch.tensor([700, 0, 1, 290, 9])
    for op in (quantize.quantize_columns, quantize.quantize_rows_and_columns):
        ours = op(x_MK, counts_E.to(DEVICE), scales, "triton")
        assert_same(tuple(part.cpu() for part in ours), op(x_MK.cpu(), counts_E, scales, "naive"))
    for op, x in ((quantize.quantize_activation, x_MK), (quantize.quantize_weight_and_transpose, w_NK)):
        ours = op(x, scales, "triton")
        assert_same(tuple(part.cpu() for part in ours), op(x.cpu(), scales, "naive"))


@pytest.mark.parametrize("name", ["block_scaled_matmul", "grouped_matmul", "grouped_wgrad"])
def test_products_are_the_references_but_for_the_sums_of_tensor_cores(name):
    (ours,), (wanted,) = all_ops("triton")[name], all_ops("naive")[name]
    assert (ours - wanted).norm() < PRODUCT_TOLERANCE * wanted.norm()


@pytest.mark.parametrize("tiles", [False, True])
def test_products_agree_with_those_of_cublas(tiles):
    """torch's block-scaled product: the same operands, another implementation."""
    m, n = 1024, 640
    a, a_scale = quantize.quantize_activation(normal(m, K))
    w_NK = normal(n, K, seed=1, size=0.02)
    b, b_scale = (quantize.quantize_activation if tiles else quantize.quantize_weight)(w_NK)
    cublas = F.scaled_mm(
        a,
        b.T,
        scale_a=a_scale.T.contiguous().T,
        scale_recipe_a=ScalingType.BlockWise1x128,
        scale_b=b_scale.T.contiguous().T if tiles else F.pad(b_scale, (0, -b_scale.shape[1] % 4)).T,
        scale_recipe_b=ScalingType.BlockWise1x128 if tiles else ScalingType.BlockWise128x128,
        output_dtype=torch.float32 if tiles else torch.bfloat16,
    )
    ours = block_scaled_matmul(a, a_scale, b, b_scale, dtype=cublas.dtype)
    assert (ours.float() - cublas.float()).norm() < 5e-3 * cublas.float().norm()
