"""The emulated sums of Hopper's tensor cores, against whole-number arithmetic and the report's figures."""

import math

import pytest
import torch

from deepseek_mini_kernels.matmul import HopperAccumulation, block_scaled_matmul
from deepseek_mini_kernels.quantize import quantize_activation, quantize_weight
from kernel_helpers import normal

CUTS = {"down": math.floor, "zero": math.trunc}


def register(sum_before: float, products: list[float], cut) -> float:
    """One instruction: all addends as whole multiples of the largest one's 14th bit, then 14 bits again."""

    def unit(largest: float) -> float:
        return 2.0 ** (math.floor(math.log2(largest)) - 13) if largest else 1.0

    addends = [*products, sum_before]
    place = unit(max(abs(x) for x in addends))
    total = place * sum(cut(x / place) for x in addends)
    return unit(abs(total)) * cut(total / unit(abs(total)))


@pytest.mark.parametrize("rounding", ["down", "zero"])
def test_every_instruction_aligns_to_its_largest_addend_and_keeps_14_bits(rounding):
    a, a_scale = quantize_activation(normal(3, 128, size=3.0).cpu())
    b, b_scale = quantize_activation(normal(4, 128, seed=1).cpu())
    ours = block_scaled_matmul(a, a_scale, b, b_scale, accumulation=HopperAccumulation(128, rounding))
    for i in range(3):
        for j in range(4):
            total = 0.0
            for first in range(0, 128, 32):
                here = slice(first, first + 32)
                products = (a[i, here].double() * b[j, here].double()).tolist()
                total = register(total, products, CUTS[rounding])
            wanted = torch.tensor(total) * (a_scale[i, 0] * b_scale[j, 0])
            assert ours[i, j] == wanted


@pytest.mark.parametrize("rounding", ["down", "zero"])
def test_registers_keep_13_bits_below_the_leading_one(rounding):
    x = torch.cat(
        (normal(1000).cpu(), normal(1000, seed=1).cpu() * 1e-12, torch.tensor([0.0, 1.0, -1.0, 448.0]))
    )
    x = torch.cat((x, torch.tensor([2.0**-13, 2.0**-14, -(2.0**-14)]) + 1, torch.tensor([-1.9999999])))
    kept = HopperAccumulation(rounding=rounding).cut(x)
    for before, after in zip(x.tolist(), kept.tolist(), strict=True):
        unit = 2.0 ** (math.floor(math.log2(abs(before))) - 13) if before else 1.0
        assert after == CUTS[rounding](before / unit) * unit


def test_rarer_promotion_costs_more_accuracy():
    x, w = quantize_activation(normal(32, 2048).cpu()), quantize_weight(normal(48, 2048, seed=1).cpu())
    exact = block_scaled_matmul(*x, *w)
    errors = [
        (block_scaled_matmul(*x, *w, accumulation=HopperAccumulation(every)) - exact).norm() / exact.norm()
        for every in (32, 64, 128, 256, 512, None)
    ]
    assert errors == sorted(errors)
    assert errors[2] < 0.003
    assert errors[-1] > 0.01


def test_4096_products_without_promotion_err_by_percents_as_reported():
    """V3 section 3.3.2: near 2% of the largest at K = 4096."""
    x, w = normal(32, 4096).cpu(), normal(32, 4096, seed=1).cpu()
    a, b = ((448 * t / t.abs().max()).to(torch.float8_e4m3fn) for t in (x, w))
    one = torch.ones(32, 32)
    exact = a.float() @ b.float().T

    def worst(accumulation: HopperAccumulation) -> float:
        ours = block_scaled_matmul(a, one, b, one, accumulation=accumulation)
        return ((ours - exact).abs().max() / exact.abs().max()).item()

    assert 0.02 < worst(HopperAccumulation(None, "down")) < 0.08
    assert 0.001 < worst(HopperAccumulation(None, "zero")) < 0.02
    assert worst(HopperAccumulation(128, "down")) < 0.002


def test_factors_that_differ_between_blocks_are_carried_along_without_promotion():
    """Powers of two move no bit: the result is that of one factor over operands that hold the rest."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randint(1, 9, (4, 256), generator=generator).float() for _ in range(2))
    scale = torch.tensor([[1.0, 4.0]]).expand(4, 2)
    one = torch.ones(4, 2)
    carried = a * scale.repeat_interleave(128, 1)
    e4m3, never = torch.float8_e4m3fn, HopperAccumulation(None, "zero")
    b = b.to(e4m3)
    ours = block_scaled_matmul(a.to(e4m3), scale, b, one, accumulation=never)
    assert torch.equal(ours, block_scaled_matmul(carried.to(e4m3), one, b, one, accumulation=never))


def test_the_quick_emulation_errs_in_the_same_direction_and_less():
    x, w = quantize_activation(normal(32, 1024).cpu()), quantize_weight(normal(48, 1024, seed=1).cpu())
    exact = block_scaled_matmul(*x, *w)
    quick, full = (
        block_scaled_matmul(*x, *w, accumulation=HopperAccumulation(None, align_products=align)) - exact
        for align in (False, True)
    )
    assert full.mean() < quick.mean() < 0


@pytest.mark.parametrize("every", [0, 16, 96, 192, -32])
def test_promotion_intervals_that_no_kernel_has_are_refused(every):
    with pytest.raises(ValueError, match=f"promote_every={every} must be 32, 64, or a multiple of 128"):
        HopperAccumulation(every)
