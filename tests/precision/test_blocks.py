"""Weights in 128 x 128 blocks of E4M3, against a list of all numbers of the format."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deepseek_mini.precision.blocks import dequantize_weight, quantize_weight, scale_shape

few = settings(deadline=None, derandomize=True, max_examples=30)

SHAPES = [(128, 128), (1, 1), (130, 200), (576, 96), (5, 300), (257, 127)]

E4M3_VALUES = sorted(
    sign * value
    for exponent in range(16)
    for mantissa in range(8)
    if (exponent, mantissa) != (15, 7)  # which is NaN
    for value in [(1 + mantissa / 8) * 2.0 ** (exponent - 7) if exponent else mantissa / 8 * 2.0**-6]
    for sign in (1, -1)
)
"""Every finite number of E4M3: 4 exponent bits with bias 7, 3 mantissa bits, no infinity."""


def weight(n: int, k: int, seed: int = 0, size: float = 0.02) -> Tensor:
    return size * torch.randn(n, k, generator=torch.Generator().manual_seed(seed))


def blocks(w_NK: Tensor) -> list[tuple[int, int, slice, slice]]:
    """Number and place of each block."""
    return [
        (x, y, slice(128 * x, 128 * x + 128), slice(128 * y, 128 * y + 128))
        for x in range(math.ceil(w_NK.shape[0] / 128))
        for y in range(math.ceil(w_NK.shape[1] / 128))
    ]


def same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a.view(torch.uint8), b.view(torch.uint8))


def test_the_format_has_448_as_its_largest_number_and_2_to_the_minus_9_as_its_smallest():
    assert E4M3_VALUES[-1] == 448
    assert min(abs(v) for v in E4M3_VALUES if v) == 2**-9


@pytest.mark.parametrize("shape", SHAPES)
def test_every_value_is_the_nearest_e4m3_number_in_units_of_its_blocks_scale(shape):
    w_NK = weight(*shape)
    q_NK, scale_XY = quantize_weight(w_NK)
    assert list(scale_XY.shape) == scale_shape(*shape)
    assert q_NK.dtype == torch.float8_e4m3fn
    assert scale_XY.dtype == torch.float32
    grid = torch.tensor(E4M3_VALUES, dtype=torch.float64)
    for x, y, rows, columns in blocks(w_NK):
        block = w_NK[rows, columns]
        expected = block.abs().max() / torch.tensor(448.0)
        assert scale_XY[x, y] == expected
        wanted = block.double() / expected.double()
        chosen = q_NK[rows, columns].double()
        nearest = (wanted.flatten()[:, None] - grid).abs().amin(1)
        assert ((wanted - chosen).abs().flatten() <= nearest + 1e-5).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_dequantising_multiplies_each_value_by_its_own_blocks_scale(shape):
    q_NK = weight(*shape, size=50.0).to(torch.float8_e4m3fn)
    scale_XY = torch.rand(scale_shape(*shape), generator=torch.Generator().manual_seed(1)) + 0.5
    w_NK = dequantize_weight(q_NK, scale_XY)
    assert w_NK.dtype == torch.float32
    for x, y, rows, columns in blocks(w_NK):
        assert torch.equal(w_NK[rows, columns], q_NK[rows, columns].float() * scale_XY[x, y])


@given(st.integers(0, 1000), st.sampled_from(SHAPES), st.integers(-30, 30))
@few
def test_quantising_again_changes_no_bit(seed, shape, exponent):
    q_NK, scale_XY = quantize_weight(weight(*shape, seed=seed, size=10.0**exponent))
    again = quantize_weight(dequantize_weight(q_NK, scale_XY))
    assert same(again[0], q_NK)
    assert same(again[1], scale_XY)


@given(st.integers(0, 1000), st.integers(-3, 37))
@few
def test_finite_weights_of_any_size_stay_finite_and_close(seed, exponent):
    w_NK = weight(130, 140, seed, size=10.0**exponent)
    q_NK, scale_XY = quantize_weight(w_NK)
    back_NK = dequantize_weight(q_NK, scale_XY)
    assert back_NK.isfinite().all()
    step_NK = torch.maximum(w_NK.abs() / 16, dequantize_weight(torch.ones(130, 140), scale_XY) * 2**-10)
    assert ((back_NK - w_NK).abs() <= step_NK * (1 + 1e-5)).all()


def test_zeros_stay_zeros_with_a_finite_scale():
    q_NK, scale_XY = quantize_weight(torch.zeros(200, 100))
    assert (dequantize_weight(q_NK, scale_XY) == 0).all()
    assert scale_XY.isfinite().all()
    assert (scale_XY > 0).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_makes_its_own_block_nan_and_no_other(bad):
    w_NK = weight(200, 300)
    clean = dequantize_weight(*quantize_weight(w_NK))
    w_NK[150, 290] = bad
    q_NK, scale_XY = quantize_weight(w_NK)
    spoilt = dequantize_weight(q_NK, scale_XY)
    hit = torch.zeros(200, 300, dtype=torch.bool)
    hit[128:, 256:] = True
    assert spoilt[hit].isnan().all()
    assert torch.equal(spoilt[~hit], clean[~hit])
    assert scale_XY.isnan().tolist() == [[False] * 3, [False, False, True]]
