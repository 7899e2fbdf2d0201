"""The format of what is kept after attention."""

import numpy as np
import pytest
import torch

from deepseek_mini.precision.e5m6 import decode, encode, round_to_e5m6
from oracles import fp8
from precision.arithmetics import normal


def test_every_number_and_every_tie_between_two_rounds_to_the_nearest_and_the_even_one():
    numbers = fp8.E5M6
    ties = (numbers[1:] + numbers[:-1]) / 2
    x = np.concatenate([numbers, ties, ties * (1 + 2**-20), ties * (1 - 2**-20), [0.0]]).astype(np.float32)
    x = np.concatenate([x, -x])
    ours = round_to_e5m6(torch.from_numpy(x)).double().numpy()
    assert np.array_equal(ours, fp8.nearest(x, numbers))
    assert len(numbers) == 31 * 64


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (70, 200), (5, 256)])
def test_encoding_follows_the_formula_and_takes_a_byte_and_a_half(shape):
    x = normal(*shape) * normal(*shape, seed=1).exp() ** 4
    packed, factors = encode(x)
    assert packed.dtype == torch.uint8
    assert packed.shape == (shape[0], 3 * -(-shape[1] // 2))
    assert factors.shape == (shape[0], -(-shape[1] // 128))
    wanted = fp8.quantised(x.numpy(), 1, 128, "pow2", numbers=fp8.E5M6)
    assert np.array_equal(decode(packed, factors, shape[1]).double().numpy(), wanted)


def test_tiles_can_be_turned_without_a_new_rounding():
    """For numbers within 2^25 of the largest of their new tile: then none of them becomes subnormal."""
    x = normal(256, 256) * normal(256, 1, seed=1).exp()
    x += x.sign() * 1e-3
    once = decode(*encode(x), 256)
    again = decode(*encode(once.T.contiguous()), 256).T
    assert torch.equal(once, again)


def test_it_errs_by_less_than_an_eighth_of_what_e4m3_does():
    x = normal(64, 256)
    kept = decode(*encode(x), 256)
    in_e4m3 = torch.from_numpy(fp8.quantised(x.numpy(), 1, 128, "pow2"))
    assert (kept - x).norm() < (in_e4m3 - x).norm() / 7.5


def test_a_tile_with_a_nan_or_an_infinity_becomes_nan_and_zeros_stay_zeros():
    x = torch.zeros(3, 256)
    x[1, 5], x[2, 200] = torch.nan, torch.inf
    kept = decode(*encode(x), 256)
    assert kept[0].eq(0).all()
    assert kept[1].isnan().tolist() == [True] * 128 + [False] * 128
    assert kept[2].isnan().tolist() == [False] * 128 + [True] * 128
