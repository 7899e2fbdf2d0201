"""What the tests of the kernels share: the device, poisoned memory, and an oracle for rounding to E4M3."""

import contextlib
import importlib.util
import os

import numpy as np
import pytest
import torch
from torch import Tensor

INTERPRETED = os.environ["TRITON_INTERPRET"] == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
"""The same tests check the kernels on a GPU, where there is one."""
PRODUCT_TOLERANCE = 1e-6 if INTERPRETED else 1e-3
"""Of FP8 products against the reference; the sums of Hopper's tensor cores keep 14 bits."""
HAS_TRITON = importlib.util.find_spec("triton") is not None

needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed")
interpreter_only = pytest.mark.skipif(not (HAS_TRITON and INTERPRETED), reason="about the interpreter")
both_backends = pytest.mark.parametrize("backend", ["naive", pytest.param("triton", marks=needs_triton)])

GUARD = 512
"""Poisoned elements before and after a guarded tensor; a multiple of 16, to keep the alignment."""


def normal(*shape: int, seed: int = 0, size: float = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal numbers in guarded memory."""
    x = size * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return guarded(x.to(dtype))


def guarded(x: Tensor) -> Tensor:
    """A copy on the device with poison on both sides: what reads past its ends gets poison."""
    memory = poison(torch.empty(x.numel() + 2 * GUARD, dtype=x.dtype, device=DEVICE))
    inside = memory[GUARD : GUARD + x.numel()]
    inside.copy_(x.flatten())
    return inside.view(x.shape)


def poison(x: Tensor) -> Tensor:
    """Fill with NaN, and integers with numbers that are no count and no index."""
    if x.dtype.is_floating_point:
        return x.copy_(torch.tensor(torch.nan))
    return x.fill_(torch.iinfo(x.dtype).max // 2)


def assert_same(ours: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> None:
    """Equal to the last bit, except that any NaN equals any other."""
    for a, b in zip(ours, wanted, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        a, b = a.float(), b.float()
        assert torch.equal(a.isnan(), b.isnan())
        assert torch.equal(a.nan_to_num().view(torch.int32), b.nan_to_num().view(torch.int32))


def any_order(seed: int) -> contextlib.AbstractContextManager:
    """Run programs in a random order, where an order can be chosen."""
    if not (HAS_TRITON and INTERPRETED):
        return contextlib.nullcontext()
    from triton_interpreter import shuffled_programs

    return shuffled_programs(seed)


def product_error(ours: Tensor, wanted: Tensor, bound: Tensor) -> float:
    """Largest error of a product, each in units of `bound`, the sum of its addends' magnitudes."""
    assert ours.shape == wanted.shape == bound.shape
    error = (ours.double() - wanted.double()).abs() / bound.double().clamp(min=1e-30)
    return error.amax().item() if error.numel() else 0.0


def e4m3_numbers() -> np.ndarray:
    """The 127 finite numbers of E4M3 from 0 up, at their codes: 4 exponent bits, bias 7, 3 of mantissa."""
    code = np.arange(127)
    exponent, mantissa = code >> 3, code & 7
    return np.where(exponent > 0, (8 + mantissa) * 2.0 ** (exponent - 10.0), mantissa * 2.0**-9)


def e4m3_codes(x: np.ndarray) -> np.ndarray:
    """Codes of the nearest E4M3 numbers, of two equally near ones the even; NaN is code 127."""
    numbers = e4m3_numbers()
    size = np.minimum(np.abs(np.nan_to_num(x.astype(np.float64), nan=0.0, posinf=1e300)), 448.0)
    above = np.clip(np.searchsorted(numbers, size), 1, 126)
    below = above - 1
    to_below, to_above = size - numbers[below], numbers[above] - size
    nearest = np.where(to_below < to_above, below, above)
    nearest = np.where(to_below == to_above, np.where(below % 2 == 0, below, above), nearest)
    return np.where(np.isnan(x), 127, nearest | np.where(np.signbit(x), 128, 0)).astype(np.uint8)


def codes(q: Tensor) -> np.ndarray:
    """Codes of an E4M3 tensor, NaN as 127 whatever its sign."""
    code = q.view(torch.uint8).cpu().numpy()
    return np.where(code & 127 == 127, np.uint8(127), code)
