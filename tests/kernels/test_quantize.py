"""Quantisers: naive against DeepSeek's formula written out, Triton against naive, to the last bit."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from deepseek_mini_kernels import quantize
from deepseek_mini_kernels.formats import SMALLEST_GRADIENT
from deepseek_mini_kernels.quantize.naive import padded_rows
from kernel_helpers import (
    DEVICE,
    any_order,
    assert_same,
    both_backends,
    codes,
    e4m3_codes,
    guarded,
    needs_triton,
    normal,
)

SHAPES = [(1, 1), (1, 128), (128, 128), (70, 200), (257, 127), (5, 300)]
COUNTS = [[70, 0, 1, 129], [0, 0, 3], [128, 256], [0, 1, 0]]
SCALES = pytest.mark.parametrize("scales", ["fp32", "pow2"])

ACTIVATION_OPS = [
    quantize.quantize_activation,
    quantize.quantize_columns,
    quantize.quantize_rows_and_columns,
]
WEIGHT_OPS = [quantize.quantize_weight, quantize.quantize_weight_and_transpose]


def literal(x: np.ndarray, scales: str) -> tuple[np.ndarray, np.float32]:
    """Codes and factor of one tile by DeepSeek's formula, in float32 throughout."""
    amax = np.maximum(np.abs(x).max(), np.float32(1e-4))
    scale = np.float32(amax / np.float32(448))
    if scales == "pow2":
        scale = np.float32(2.0 ** math.ceil(math.log2(float(scale))))
    return e4m3_codes((x / scale).astype(np.float32)), scale


def literal_tiles(x: np.ndarray, height: int, width: int, scales: str) -> tuple[np.ndarray, np.ndarray]:
    code = np.zeros(x.shape, np.uint8)
    scale = np.zeros((-(-x.shape[0] // height), -(-x.shape[1] // width)), np.float32)
    for i, j in np.ndindex(*scale.shape):
        place = np.s_[i * height : (i + 1) * height, j * width : (j + 1) * width]
        code[place], scale[i, j] = literal(x[place], scales)
    return code, scale


def extremes() -> Tensor:
    """Zeros, the smallest and the largest numbers, subnormals, and ties between E4M3 numbers."""
    x = normal(40, 256, size=100.0).clone()
    x[0] = 0
    x[1] = -0.0
    x[2] = 1e-40
    x[3] = torch.finfo(torch.float32).max
    x[4, 5] = 3e38
    x[5] *= 1e-9
    x[6, :128] = torch.arange(128) + 0.5
    x[6, 0] = 448
    x[7] = 448 * 2.0 ** torch.arange(-128, 128)
    return guarded(x)


@SCALES
@pytest.mark.parametrize("shape", SHAPES)
@both_backends
def test_activations_follow_the_formula_in_tiles_of_1_x_128(backend, shape, scales):
    x_MK = normal(*shape)
    q_MK, scale_MY = quantize.quantize_activation(x_MK, scales, backend)
    code, scale = literal_tiles(x_MK.cpu().numpy(), 1, 128, scales)
    assert np.array_equal(codes(q_MK), code)
    assert np.array_equal(scale_MY.cpu().numpy(), scale)


@SCALES
@pytest.mark.parametrize("shape", SHAPES)
@both_backends
def test_weights_follow_the_formula_in_blocks_of_128_x_128(backend, shape, scales):
    w_NK = normal(*shape, size=0.02)
    q_NK, scale_XY = quantize.quantize_weight(w_NK, scales, backend)
    code, scale = literal_tiles(w_NK.cpu().numpy(), 128, 128, scales)
    assert np.array_equal(codes(q_NK), code)
    assert np.array_equal(scale_XY.cpu().numpy(), scale)


@both_backends
def test_columns_follow_the_formula_in_tiles_of_128_x_1_and_are_padded_with_zeros(backend):
    x_MK = normal(300, 130)
    q_KP, scale_KZ = quantize.quantize_columns(x_MK, backend=backend)
    code, scale = literal_tiles(x_MK.cpu().numpy(), 128, 1, "fp32")
    assert q_KP.shape == (130, 384)
    assert np.array_equal(codes(q_KP)[:, :300], code.T)
    assert np.array_equal(scale_KZ.cpu().numpy(), scale.T)
    assert (q_KP[:, 300:].float() == 0).all()


@pytest.mark.parametrize("counts", COUNTS)
@both_backends
def test_columns_of_experts_are_those_of_each_expert_alone(backend, counts):
    x_SK = normal(sum(counts), 130)
    counts_E = guarded(torch.tensor(counts))
    q_KP, scale_KZ = quantize.quantize_columns(x_SK, counts_E, backend=backend)
    assert q_KP.shape[1] == padded_rows(sum(counts), len(counts))
    first = 0
    for own in x_SK.split(counts):
        if len(own):
            q, scale = quantize.quantize_columns(own, backend="naive")
            tiles = slice(first, first + scale.shape[1])
            places = slice(128 * tiles.start, 128 * tiles.stop)
            assert_same((q_KP[:, places], scale_KZ[:, tiles]), (q, scale))
            first = tiles.stop
    assert (q_KP[:, 128 * first :].float() == 0).all()


@both_backends
def test_counts_may_be_a_column_of_a_table(backend):
    x_SK, table = normal(200, 130), guarded(torch.tensor([[3, 7], [0, 7], [197, 7]]))
    ours = quantize.quantize_columns(x_SK, table[:, 0], backend=backend)
    assert_same(ours, quantize.quantize_columns(x_SK, table[:, 0].clone(), backend="naive"))


@both_backends
def test_columns_of_a_stored_activation_are_those_of_its_dequantised_values(backend):
    q_MK, scale_MY = quantize.quantize_activation(normal(200, 300), backend="naive")
    stored = guarded(q_MK), guarded(scale_MY)
    counts_E = guarded(torch.tensor([3, 0, 197]))
    ours = quantize.requantize_columns(*stored, counts_E, backend=backend)
    x_MK = quantize.dequantize_activation(q_MK, scale_MY)
    assert_same(ours, quantize.quantize_columns(x_MK, counts_E, backend="naive"))


@both_backends
def test_powers_of_two_let_a_stored_activation_change_its_tiles_without_error(backend):
    q_MK, scale_MY = quantize.quantize_activation(normal(256, 256), "pow2", backend)
    columns = quantize.requantize_columns(q_MK, scale_MY, scales="pow2", backend=backend)
    before = quantize.dequantize_activation(q_MK, scale_MY)
    after = quantize.dequantize_activation(*columns).T
    assert torch.equal(before, after)


@both_backends
def test_gradients_of_a_large_batch_keep_their_precision(backend):
    """The floor of activations would make most of them zero."""
    dy_MN = normal(70, 200)
    tiny_MN = guarded(dy_MN * 2.0**-60)
    smallest = SMALLEST_GRADIENT
    counts_E = guarded(torch.tensor([60, 0, 10]))
    ours = quantize.quantize_rows_and_columns(tiny_MN, counts_E, backend=backend, smallest=smallest)
    wanted = quantize.quantize_rows_and_columns(dy_MN, counts_E, backend="naive")
    for of_tiny, of_usual in zip(ours[::2], wanted[::2], strict=True):
        assert np.array_equal(codes(of_tiny), codes(of_usual))
    rows = quantize.quantize_activation(tiny_MN, backend=backend, smallest=smallest)
    assert_same(rows, (wanted[0], wanted[1] * 2.0**-60))
    columns = quantize.quantize_columns(tiny_MN, counts_E, backend=backend, smallest=smallest)
    assert_same(columns, ours[2:])
    again = quantize.requantize_columns(*rows, counts_E, backend=backend, smallest=smallest)
    assert_same(again, quantize.requantize_columns(*rows, counts_E, backend="naive", smallest=smallest))
    assert (dequantized := quantize.dequantize_activation(*again)).isfinite().all()
    assert dequantized.count_nonzero() > 0.9 * dy_MN.numel()
    assert (quantize.quantize_activation(tiny_MN, backend=backend)[0].float() == 0).all()
    zeros = quantize.quantize_activation(torch.zeros_like(dy_MN), backend=backend, smallest=smallest)
    assert (zeros[0].float() == 0).all()
    assert (zeros[1] > 0).all()


@needs_triton
@SCALES
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_triton_equals_naive_to_the_last_bit_in_any_order_of_programs(dtype, seed, scales):
    x_MK = normal(300, 384, seed=seed, dtype=dtype)
    with any_order(seed):
        for op in [*ACTIVATION_OPS, *WEIGHT_OPS]:
            ours, wanted = (op(x_MK, scales=scales, backend=b) for b in ("triton", "naive"))
            assert_same(ours, wanted)


@needs_triton
@SCALES
@pytest.mark.parametrize("op", [*ACTIVATION_OPS, *WEIGHT_OPS])
def test_triton_equals_naive_on_extreme_values(op, scales):
    x = extremes()
    assert_same(*(op(x, scales=scales, backend=backend) for backend in ("triton", "naive")))


@needs_triton
@pytest.mark.parametrize("counts", COUNTS)
def test_rows_and_columns_of_experts_come_from_one_pass(counts):
    x_SK, counts_E = normal(sum(counts), 200), guarded(torch.tensor(counts))
    ours, wanted = (
        quantize.quantize_rows_and_columns(x_SK, counts_E, backend=b) for b in ("triton", "naive")
    )
    assert_same(ours, wanted)


@both_backends
def test_a_stack_of_weights_is_quantised_expert_by_expert(backend):
    w_ENK = normal(3, 130, 200)
    stack = quantize.quantize_weight_and_transpose(w_ENK, backend=backend)
    for e, w_NK in enumerate(w_ENK):
        alone = quantize.quantize_weight_and_transpose(w_NK, backend="naive")
        assert_same(tuple(part[e] for part in stack), alone)
        assert torch.equal(alone[0].mT.float(), alone[1].float())


@both_backends
def test_no_tokens_and_no_experts_give_empty_results(backend):
    x_MK = torch.empty(0, 256, device=DEVICE)
    q_MK, scale_MY = quantize.quantize_activation(x_MK, backend=backend)
    q_KP, scale_KZ = quantize.quantize_columns(x_MK, backend=backend)
    assert (q_MK.shape, scale_MY.shape, q_KP.shape, scale_KZ.shape) == ((0, 256), (0, 2), (256, 0), (256, 0))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@both_backends
def test_a_number_that_is_not_finite_makes_its_own_tile_nan_and_no_other(backend, bad):
    x = normal(200, 300).clone()
    x[150, 290] = bad
    q_MK, scale_MY, q_KP, scale_KZ = quantize.quantize_rows_and_columns(x, backend=backend)
    assert scale_MY.isnan().nonzero().tolist() == [[150, 2]]
    assert scale_KZ.isnan().nonzero().tolist() == [[290, 1]]
    assert q_MK.float().isnan().nonzero().tolist() == [[150, k] for k in range(256, 300)]
    assert q_KP.float().isnan().nonzero().tolist() == [[290, p] for p in range(128, 256)]
    q_NK, scale_XY = quantize.quantize_weight(x, backend=backend)
    assert scale_XY.isnan().tolist() == [[False] * 3, [False, False, True]]
    assert q_NK.float().isnan().sum() == 72 * 44


@both_backends
def test_zeros_stay_zeros_with_a_finite_factor(backend):
    for op in (quantize.quantize_activation, quantize.quantize_columns, quantize.quantize_weight):
        q, scale = op(torch.zeros(130, 130, device=DEVICE), backend=backend)
        assert (q.float() == 0).all()
        assert (scale > 0).all()
        assert scale.isfinite().all()


@both_backends
def test_powers_of_two_are_the_next_above_also_beside_a_power_of_two(backend):
    """A float32 logarithm rounds 2^k (1 + 2^-23) to k, which would be a power too low."""
    wanted = torch.tensor([2.0**k for k in range(-8, 100)])
    amax = torch.cat([448 * wanted, 448 * wanted.nextafter(torch.tensor(torch.inf))])
    x_MK = guarded(amax[:, None] * torch.ones(1, 4))
    scale = quantize.quantize_activation(x_MK, "pow2", backend)[1][:, 0].cpu()
    exact = amax / torch.tensor(448.0)
    assert torch.equal(scale, torch.tensor([2.0 ** math.ceil(math.log2(s)) for s in exact.tolist()]))
    assert torch.equal(scale[: len(wanted)], wanted)
    assert torch.equal(scale[len(wanted) :], 2 * wanted)


def test_torchao_agrees_within_an_ulp_of_the_factor_and_one_code():
    reference = pytest.importorskip("torchao.prototype.blockwise_fp8_training.kernels")
    x_MK = normal(256, 384).cpu()
    columns = reference.torch_blockwise_scale_act_quant_rhs(x_MK)
    pairs = {
        "rows": (
            quantize.quantize_activation(x_MK),
            reference.torch_blockwise_scale_act_quant_lhs(x_MK),
        ),
        "columns": (quantize.quantize_columns(x_MK), (columns[0].T, columns[1].T)),
        "weight": (quantize.quantize_weight(x_MK), reference.torch_blockwise_scale_weight_quant(x_MK)),
    }
    for name, ((q, scale), (their_q, their_scale)) in pairs.items():
        assert scale.shape == their_scale.shape, name
        ulps = scale.contiguous().view(torch.int32) - their_scale.contiguous().view(torch.int32)
        assert ulps.abs().max() <= 1, name
        steps = codes(q).astype(int) - codes(their_q.contiguous()).astype(int)
        assert np.abs(steps).max() <= 1, name


def test_wrong_input_is_refused_with_a_reason():
    with pytest.raises(ValueError, match="x_MK must have 2 dimensions"):
        quantize.quantize_activation(torch.zeros(2, 2, 2))
    with pytest.raises(ValueError, match="scales='e8m0' is unknown; there are fp32 and pow2"):
        quantize.quantize_weight(torch.zeros(2, 2), "e8m0")
