"""Products of routed experts: each expert's rows with its own weight, whatever the sizes of the groups."""

import pytest
import torch

from deepseek_mini_kernels.grouped_matmul import grouped_matmul, grouped_wgrad
from deepseek_mini_kernels.matmul import block_scaled_matmul
from deepseek_mini_kernels.quantize import (
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

CASES = [
    ([70, 0, 1, 129], 128, 128),
    ([0, 0, 3], 200, 300),
    ([5], 16, 64),
    ([0, 130, 0], 130, 70),
    ([1] * 9, 32, 192),
    ([0, 0], 16, 16),
    ([200, 57], 140, 256),
]
cases = pytest.mark.parametrize(("counts", "n", "k"), CASES)


def quantised(counts: list[int], n: int, k: int):
    """Rows, weights and counts in guarded memory."""
    x_SK, w_ENK = normal(sum(counts), k), normal(len(counts), n, k, seed=1, size=0.02)
    x, w = quantize_activation(x_SK, backend="naive"), quantize_weight(w_ENK, backend="naive")
    return *(guarded(part) for part in (*x, *w)), guarded(torch.tensor(counts))


def columns(counts: list[int], n: int, k: int):
    dy_SN, x_SK, counts_E = normal(sum(counts), n), normal(sum(counts), k, seed=1), torch.tensor(counts)
    dy, x = (quantize_columns(t, counts_E.to(DEVICE), backend="naive") for t in (dy_SN, x_SK))
    return *(guarded(part) for part in (*dy, *x)), guarded(counts_E)


@cases
@both_backends
def test_each_row_meets_the_weight_of_its_own_expert(backend, counts, n, k):
    x, x_scale, w, w_scale, counts_E = quantised(counts, n, k)
    ours = grouped_matmul(x, x_scale, w, w_scale, counts_E, backend=backend)
    assert ours.shape == (sum(counts), n)
    rows = zip(*(t.split(counts) for t in (ours, x, x_scale)), strict=True)
    for e, (own, own_x, own_scale) in enumerate(rows):
        wanted = block_scaled_matmul(own_x, own_scale, w[e], w_scale[e], backend="naive")
        magnitude = block_scaled_matmul(_abs(own_x), own_scale, _abs(w[e]), w_scale[e], backend="naive")
        assert product_error(own, wanted, magnitude) < PRODUCT_TOLERANCE


@cases
@both_backends
def test_the_gradient_of_a_weight_sums_over_its_own_experts_tokens(backend, counts, n, k):
    dy, dy_scale, x, x_scale, counts_E = columns(counts, n, k)
    ours = grouped_wgrad(dy, dy_scale, x, x_scale, counts_E, backend=backend)
    assert ours.shape == (len(counts), n, k)
    first = 0
    for e, count in enumerate(counts):
        tiles = slice(first, first + -(-count // 128))
        places = slice(128 * tiles.start, 128 * tiles.stop)
        factors = dy_scale[:, tiles], x_scale[:, tiles]
        own_dy, own_x = dy[:, places], x[:, places]
        wanted = block_scaled_matmul(own_dy, factors[0], own_x, factors[1], backend="naive")
        magnitude = block_scaled_matmul(_abs(own_dy), factors[0], _abs(own_x), factors[1], backend="naive")
        assert product_error(ours[e], wanted, magnitude) < PRODUCT_TOLERANCE
        first = tiles.stop


@both_backends
def test_an_expert_without_tokens_gets_a_gradient_of_zeros(backend):
    dy, dy_scale, x, x_scale, counts_E = columns([3, 0, 2], 16, 32)
    ours = grouped_wgrad(dy, dy_scale, x, x_scale, counts_E, backend=backend)
    assert (ours[1] == 0).all()
    assert (ours[[0, 2]] != 0).any(-1).any(-1).all()


@needs_triton
@pytest.mark.parametrize("seed", [0, 1])
def test_results_do_not_depend_on_the_order_of_programs(seed):
    forward, backward = quantised([70, 0, 1, 129], 200, 256), columns([70, 0, 1, 129], 200, 256)
    in_order = grouped_matmul(*forward, backend="triton"), grouped_wgrad(*backward, backend="triton")
    with any_order(seed):
        assert torch.equal(grouped_matmul(*forward, backend="triton"), in_order[0])
        assert torch.equal(grouped_wgrad(*backward, backend="triton"), in_order[1])


@both_backends
def test_the_three_products_of_experts_agree_with_high_precision_within_fp8(backend):
    counts, n, k = [100, 0, 60], 144, 160
    x_SK, w_ENK, dy_SN = normal(160, k), normal(3, n, k, seed=1), normal(160, n, seed=2)
    counts_E = torch.tensor(counts, device=DEVICE)
    q_ENK, q_EKN, scale_EXY = quantize_weight_and_transpose(w_ENK, backend=backend)
    x, dy = quantize_activation(x_SK, backend=backend), quantize_activation(dy_SN, backend=backend)
    columns = (quantize_columns(t, counts_E, backend=backend) for t in (dy_SN, x_SK))
    xs, dys = x_SK.split(counts), dy_SN.split(counts)
    y_SN = torch.cat([own @ w.T for own, w in zip(xs, w_ENK, strict=True)])
    dx_SK = torch.cat([own @ w for own, w in zip(dys, w_ENK, strict=True)])
    dw_ENK = torch.stack([dy.T @ x for dy, x in zip(dys, xs, strict=True)])
    for ours, wanted in (
        (grouped_matmul(*x, q_ENK, scale_EXY, counts_E, backend=backend), y_SN),
        (grouped_matmul(*dy, q_EKN, scale_EXY.mT, counts_E, backend=backend), dx_SK),
        (grouped_wgrad(*(part for pair in columns for part in pair), counts_E, backend=backend), dw_ENK),
    ):
        assert 0.005 < (ours - wanted).norm() / wanted.norm() < 0.05


def test_counts_that_do_not_fit_are_refused_with_a_reason():
    x, x_scale, w, w_scale, counts_E = quantised([3, 4], 16, 32)
    with pytest.raises(ValueError, match=r"there are 2 experts and counts of shape \[1\]"):
        grouped_matmul(x, x_scale, w, w_scale, counts_E[:1])
    with pytest.raises(ValueError, match="factors of b"):
        grouped_matmul(x, x_scale, w, w_scale[:, :, :0], counts_E)
    with pytest.raises(ValueError, match="tokens must be padded to a multiple of 128, got 32"):
        grouped_wgrad(x, x_scale, x, x_scale, counts_E)


def _abs(q: torch.Tensor) -> torch.Tensor:
    return q.float().abs().to(q.dtype)
