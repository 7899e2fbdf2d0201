"""The coarser ways of quantising, which are there to be compared with the paper's."""

import pytest
import torch
from torch import Tensor

from deepseek_mini.config import Accumulation, Backend, Format, Granularity, PrecisionConfig
from deepseek_mini.precision.arithmetic import build_arithmetic
from deepseek_mini.precision.products import EmulatedProducts, KernelProducts
from deepseek_mini.precision.quantizers import BlockGradients, PerTensor, Quantizers, Tiles
from precision.arithmetics import normal

COUNTS = torch.tensor([100, 0, 1, 199])


def gradients() -> Tensor:
    """300 tokens whose sizes differ by orders of magnitude."""
    return normal(300, 200) * (3 * normal(300, 1, seed=1)).exp() * 1e-6


def columns_as_rows(columns: Tiles) -> list[Tensor]:
    """Each expert's tokens `[C, K]` of padded, transposed tiles."""
    parts, first = [], 0
    for count in COUNTS.tolist():
        parts.append(columns.dequantized()[:, first : first + count].T)
        first += -(-count // 128) * 128
    return parts


def test_per_tensor_scaling_has_one_factor_per_matrix():
    way, dy = PerTensor("fp32", "naive"), gradients()
    rows, columns = way.gradient(dy, COUNTS)
    factor = dy.abs().max() / 448
    assert rows.factors.unique().tolist() == columns.factors.unique().tolist() == [factor]
    assert rows.factors.shape == (300, 2)
    assert torch.equal(torch.cat(columns_as_rows(columns)), rows.dequantized())
    _, factors_EXY = way.weight(normal(3, 130, 200))
    assert factors_EXY.shape == (3, 2, 2)
    assert [len(own.unique()) for own in factors_EXY] == [1, 1, 1]
    assert way.sent_gradient(dy).factors.unique().log2().frac().tolist() == [0]


def test_tokens_far_below_the_largest_are_lost_per_tensor_and_kept_in_tiles():
    dy = gradients()
    small = dy.norm(dim=1) < 1e-5 * dy.norm(dim=1).max()
    assert small.sum() > 10
    errors = [
        ((way("fp32", "naive").gradient(dy)[0].dequantized() - dy)[small].norm() / dy[small].norm()).item()
        for way in (Quantizers, PerTensor)
    ]
    assert errors[0] < 0.04
    assert errors[1] > 0.2


def test_block_gradients_have_one_factor_per_128_tokens_of_an_expert_and_128_channels():
    dy = gradients()
    rows, columns = BlockGradients("fp32", "naive").gradient(dy, COUNTS)
    assert torch.equal(torch.cat(columns_as_rows(columns)), rows.dequantized())
    first = 0
    for own in filter(len, dy.split(COUNTS.tolist())):
        for block in own.split(128):
            for y, part in enumerate(block.split(128, dim=1)):
                factors = rows.factors[first : first + len(block), y]
                assert factors.unique().tolist() == [part.abs().max() / 448]
            first += len(block)


def test_block_gradients_leave_activations_and_weights_as_they_are():
    ways = Quantizers("fp32", "naive"), BlockGradients("fp32", "naive")
    x = normal(70, 200)
    for ours, usual in ((way.rows(x), other.rows(x)) for way, other in [ways]):
        assert torch.equal(ours.factors, usual.factors)
    assert torch.equal(ways[0].weight(x)[1], ways[1].weight(x)[1])


@pytest.mark.parametrize("way", [PerTensor, BlockGradients])
@pytest.mark.parametrize("scales", ["fp32", "pow2"])
def test_coarser_ways_fit_the_same_products(way, scales):
    quantizers, products = way(scales, "naive"), EmulatedProducts()
    x, dy, w = normal(300, 200), normal(300, 130, seed=1), normal(4, 130, 200, seed=2)
    rows, columns = quantizers.gradient(dy, COUNTS)
    dx = products.dgrad(rows, products.prepare(w, quantizers), torch.float32, COUNTS)
    dw = products.wgrad(columns, quantizers.requantize(quantizers.rows(x), COUNTS), COUNTS)
    parts = zip(x.split(COUNTS.tolist()), dy.split(COUNTS.tolist()), w, strict=True)
    for e, (own_x, own_dy, own_w) in enumerate(parts):
        assert (dw[e] - own_dy.T @ own_x).norm() <= 0.06 * (own_dy.T @ own_x).norm()
        if len(own_x) > 1:
            own_dx = dx.split(COUNTS.tolist())[e]
            assert (own_dx - own_dy @ own_w).norm() < 0.06 * own_dx.norm()


def test_every_study_has_its_own_arithmetic():
    def built(**keys):
        return build_arithmetic(PrecisionConfig(Format.fp8, Backend.emulated, **keys))

    assert isinstance(built().products, EmulatedProducts)
    assert type(built().quantizers) is Quantizers
    assert isinstance(built(granularity=Granularity.tensor).quantizers, PerTensor)
    assert isinstance(built(granularity=Granularity.block_gradients).quantizers, BlockGradients)
    for choice, every in ((Accumulation.hopper, 128), (Accumulation.hopper_unpromoted, None)):
        products = built(accumulation=choice).products
        assert isinstance(products, KernelProducts)
        assert products.accumulation is not None
        assert products.accumulation.promote_every == every


def test_sums_of_hopper_err_more_without_promotion():
    x, w = normal(64, 1024), normal(96, 1024, seed=1)
    results = []
    for accumulation in Accumulation:
        how = build_arithmetic(PrecisionConfig(Format.fp8, Backend.emulated, accumulation=accumulation))
        results.append(how.products.fprop(how.quantizers.rows(x), how.weight(w), torch.float32))
    exact, promoted, unpromoted = results
    errors = [((result - exact).norm() / exact.norm()).item() for result in (promoted, unpromoted)]
    assert 1e-5 < errors[0] < errors[1] / 3 < 0.01
