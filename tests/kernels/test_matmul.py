"""The block-scaled product: against float64, `torch._scaled_mm`, and the backends against one another."""

import pytest
import torch
from torch import Tensor

from deepseek_mini_kernels.matmul import HopperAccumulation, block_scaled_matmul
from deepseek_mini_kernels.quantize import (
    dequantize_activation,
    dequantize_weight,
    quantize_activation,
    quantize_columns,
    quantize_weight,
    quantize_weight_and_transpose,
)
from kernel_helpers import (
    DEVICE,
    PRODUCT_TOLERANCE,
    any_order,
    both_backends,
    guarded,
    needs_triton,
    normal,
    product_error,
)

SHAPES = [
    (1, 1, 1),
    (1, 128, 128),
    (128, 128, 256),
    (70, 200, 300),
    (3, 16, 192),
    (129, 257, 127),
    (65, 5, 576),
]
KINDS = pytest.mark.parametrize("quantize_b", [quantize_weight, quantize_activation], ids=["blocks", "tiles"])


def operands(m: int, n: int, k: int, quantize_b, seed: int = 0) -> tuple[Tensor, ...]:
    a_MK, b_NK = normal(m, k, seed=seed), normal(n, k, seed=seed + 1, size=0.02)
    quantised = (*quantize_activation(a_MK, backend="naive"), *quantize_b(b_NK, backend="naive"))
    return tuple(guarded(part) for part in quantised)


def exact(a_MK, a_scale_MY, b_NK, b_scale) -> tuple[Tensor, Tensor]:
    """The product in float64, and the sums of its addends' magnitudes."""
    a = dequantize_activation(a_MK, a_scale_MY).double()
    dequantize = dequantize_activation if len(b_scale) == len(b_NK) else dequantize_weight
    b = dequantize(b_NK, b_scale).double()
    return a @ b.T, a.abs() @ b.abs().T


@KINDS
@pytest.mark.parametrize("shape", SHAPES)
@both_backends
def test_product_is_that_of_the_dequantised_operands(backend, shape, quantize_b):
    quantised = operands(*shape, quantize_b)
    ours = block_scaled_matmul(*quantised, backend=backend)
    assert ours.dtype == torch.float32
    assert product_error(ours, *exact(*quantised)) < PRODUCT_TOLERANCE


@needs_triton
@KINDS
@pytest.mark.parametrize("shape", [(300, 129, 384), (1030, 140, 128)])
def test_triton_agrees_with_naive_in_any_order_of_programs(shape, quantize_b):
    quantised = operands(*shape, quantize_b)
    with any_order(0):
        ours = block_scaled_matmul(*quantised, backend="triton")
    wanted = block_scaled_matmul(*quantised, backend="naive")
    assert product_error(ours, wanted, exact(*quantised)[1]) < PRODUCT_TOLERANCE


@both_backends
def test_bfloat16_results_are_the_float32_ones_rounded(backend):
    quantised = operands(70, 200, 300, quantize_weight)
    ours = block_scaled_matmul(*quantised, dtype=torch.bfloat16, backend=backend)
    assert torch.equal(ours, block_scaled_matmul(*quantised, backend=backend).bfloat16())


@pytest.mark.parametrize(
    ("backend", "accumulation"),
    [
        ("naive", None),
        ("naive", HopperAccumulation(None, align_products=False)),
        pytest.param("triton", None, marks=needs_triton),
    ],
)
def test_autocast_leaves_the_sums_in_float32(backend, accumulation):
    quantised = operands(70, 200, 300, quantize_weight)
    plain = block_scaled_matmul(*quantised, accumulation=accumulation, backend=backend)
    with torch.autocast(DEVICE, torch.bfloat16):
        ours = block_scaled_matmul(*quantised, accumulation=accumulation, backend=backend)
    assert torch.equal(ours, plain)


@both_backends
def test_scaled_mm_of_torch_is_met_exactly_where_sums_are_exact(backend):
    """Whole numbers and powers of two leave nothing to round; one tile along K is a factor per row."""
    generator = torch.Generator().manual_seed(0)
    a, b = (
        torch.randint(-8, 9, (64, 128), generator=generator).to(DEVICE, torch.float8_e4m3fn) for _ in range(2)
    )
    a_scale, b_scale = (
        (2.0 ** torch.randint(-4, 5, (64, 1), generator=generator)).to(DEVICE) for _ in range(2)
    )
    wanted = torch._scaled_mm(a, b.T, a_scale, b_scale.T, out_dtype=torch.bfloat16)
    ours = block_scaled_matmul(a, a_scale, b, b_scale, torch.bfloat16, backend=backend)
    assert torch.equal(ours, wanted)
    one = torch.ones((), device=DEVICE)
    wanted = torch._scaled_mm(a, b.T, 2 * one, 4 * one, out_dtype=torch.float32)
    factors = (2 * one.expand(64, 1), 4 * one.expand(1, 1))
    ours = block_scaled_matmul(a, factors[0], b, factors[1], backend=backend)
    assert torch.equal(ours, wanted)


@both_backends
def test_the_three_products_of_a_linear_agree_with_high_precision_within_fp8(backend):
    x_MK, w_NK, dy_MN = normal(200, 130), normal(70, 130, seed=1), normal(200, 70, seed=2)
    q_NK, q_KN, scale_XY = quantize_weight_and_transpose(w_NK, backend=backend)
    x, dy = quantize_activation(x_MK, backend=backend), quantize_activation(dy_MN, backend=backend)
    dy_NP, x_KP = quantize_columns(dy_MN, backend=backend), quantize_columns(x_MK, backend=backend)
    for ours, wanted in (
        (block_scaled_matmul(*x, q_NK, scale_XY, backend=backend), x_MK @ w_NK.T),
        (block_scaled_matmul(*dy, q_KN, scale_XY.mT, backend=backend), dy_MN @ w_NK),
        (block_scaled_matmul(*dy_NP, *x_KP, backend=backend), dy_MN.T @ x_MK),
    ):
        assert ours.shape == wanted.shape
        assert 0.005 < (ours - wanted).norm() / wanted.norm() < 0.05


@KINDS
@both_backends
def test_a_nan_in_a_tile_reaches_its_own_row_only(backend, quantize_b):
    x_MK = normal(70, 200).clone()
    x_MK[3, 150] = torch.nan
    b_NK = normal(40, 200, seed=1)
    ours = block_scaled_matmul(*quantize_activation(x_MK), *quantize_b(b_NK), backend=backend)
    assert ours.isnan().any(1).nonzero().flatten().tolist() == [3]
    assert ours[3].isnan().all()


@both_backends
def test_large_factors_do_not_overflow_before_their_product_is_taken(backend):
    quantised = operands(4, 16, 128, quantize_weight)
    scaled = (quantised[0], quantised[1] * 2.0**90, quantised[2], quantised[3] * 2.0**-90)
    ours = block_scaled_matmul(*scaled, backend=backend)
    assert torch.equal(ours, block_scaled_matmul(*quantised, backend=backend))


@both_backends
def test_no_rows_and_no_width_give_empty_results_and_zeros(backend):
    e4m3 = torch.float8_e4m3fn
    a, b = torch.empty(0, 128, device=DEVICE, dtype=e4m3), torch.zeros(5, 128, device=DEVICE, dtype=e4m3)
    scale = torch.ones(1, 1, device=DEVICE)
    assert block_scaled_matmul(a, scale[:0], b, scale, backend=backend).shape == (0, 5)
    narrow = block_scaled_matmul(b[:, :0], scale.expand(5, 1)[:, :0], b[:, :0], scale[:, :0], backend=backend)
    assert torch.equal(narrow, torch.zeros(5, 5, device=DEVICE))


def test_operands_that_do_not_fit_are_refused_with_a_reason():
    a, a_scale, b, b_scale = operands(4, 300, 256, quantize_weight)
    for bad, reason in (
        ((a.float(), a_scale, b, b_scale), "operands must be torch.float8_e4m3fn"),
        ((a[:, :128], a_scale[:, :1], b, b_scale), r"a \[4, 128\] and b \[300, 256\] have different widths"),
        ((a, a_scale[:, :1], b, b_scale), r"factors of a \[4, 256\] must be \[4, 2\], got \[4, 1\]"),
        ((a, a_scale, b, b_scale[:2]), r"factors of b \[300, 256\] must be \[3, 2\] or \[300, 2\]"),
    ):
        with pytest.raises(ValueError, match=reason):
            block_scaled_matmul(*bad)
    with pytest.raises(ValueError, match="accumulation is an emulation"):
        block_scaled_matmul(a, a_scale, b, b_scale, accumulation=HopperAccumulation(), backend="triton")
