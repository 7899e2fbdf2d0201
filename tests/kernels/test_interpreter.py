"""The ground that all other tests of the kernels stand on: casts, products, and the order of programs."""

import numpy as np
import pytest
import torch
from torch import Tensor

from kernel_helpers import DEVICE, codes, e4m3_codes, e4m3_numbers, interpreter_only

triton = pytest.importorskip("triton")
tl = triton.language

TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@triton.jit
def cast_kernel(x_ptr, y_ptr, N, BLOCK: tl.constexpr):
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + places, mask=places < N)
    tl.store(y_ptr + places, x.to(y_ptr.dtype.element_ty), mask=places < N)


@triton.jit
def cast_twice_kernel(x_ptr, y_ptr, N, BLOCK: tl.constexpr):
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + places, mask=places < N).to(tl.float32)
    tl.store(y_ptr + places, x.to(y_ptr.dtype.element_ty), mask=places < N)


@triton.jit
def product_kernel(a_ptr, b_ptr, c_ptr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    a = tl.load(a_ptr + i[:, None] * BLOCK + i[None, :])
    b = tl.load(b_ptr + i[:, None] * BLOCK + i[None, :])
    tl.store(c_ptr + i[:, None] * BLOCK + i[None, :], tl.dot(a, b))


@triton.jit
def last_program_kernel(x_ptr):
    tl.store(x_ptr, tl.program_id(0))


def cast(x: Tensor, dtype: torch.dtype, by_way_of_float32: bool = False) -> Tensor:
    x = x.to(DEVICE)
    y = torch.empty(len(x), dtype=dtype, device=DEVICE)
    kernel = cast_twice_kernel if by_way_of_float32 else cast_kernel
    kernel[(triton.cdiv(len(x), 4096),)](x, y, len(x), BLOCK=4096)
    return y.cpu()


def hard_floats() -> Tensor:
    """Numbers of every size, all ties between two E4M3 numbers, their neighbours, and what is not finite."""
    generator = torch.Generator().manual_seed(0)
    any_bits = torch.randint(-(2**31), 2**31 - 1, (40_000,), generator=generator, dtype=torch.int32)
    in_range = (torch.rand(65_536, generator=generator) - 0.5) * 1000
    numbers = torch.from_numpy(e4m3_numbers()).float()
    ties = torch.cat([numbers, (numbers[1:] + numbers[:-1]) / 2, torch.tensor([464.0, 1e4, torch.inf])])
    near = torch.cat([ties, ties.nextafter(torch.tensor(0.0)), ties.nextafter(torch.tensor(torch.inf))])
    return torch.cat([any_bits.view(torch.float32), in_range, near, -near, torch.tensor([torch.nan])])


def test_all_256_codes_of_e4m3_become_their_numbers():
    code = torch.arange(256, dtype=torch.uint8)
    for dtype in TYPES.values():
        ours = cast(code.view(torch.float8_e4m3fn), dtype).double().numpy()
        numbers = np.append(e4m3_numbers(), np.nan)
        assert np.array_equal(ours, np.concatenate([numbers, -numbers]), equal_nan=True)
        assert np.array_equal(np.signbit(ours[:127]), np.zeros(127))
        assert np.array_equal(np.signbit(ours[128:255]), np.ones(127))


@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_all_65536_half_precision_numbers_round_to_the_nearest_e4m3_number(name):
    x = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(TYPES[name])
    ours = codes(cast(x, torch.float8_e4m3fn, by_way_of_float32=True))
    assert np.array_equal(ours, e4m3_codes(x.double().numpy()))


def test_float32_rounds_to_the_nearest_e4m3_number_ties_to_even_and_saturates():
    x = hard_floats()
    assert np.array_equal(codes(cast(x, torch.float8_e4m3fn)), e4m3_codes(x.double().numpy()))


@pytest.mark.filterwarnings("ignore:overflow encountered")
@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_float32_rounds_to_half_precision_as_in_torch(name):
    x = hard_floats()
    ours, wanted = cast(x, TYPES[name]), x.to(TYPES[name])
    assert torch.equal(ours.isnan(), wanted.isnan())
    finite = ~wanted.isnan()
    assert torch.equal(ours[finite].view(torch.int16), wanted[finite].view(torch.int16))


def test_products_of_whole_e4m3_numbers_are_exact():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randint(-4, 5, (64, 64), generator=generator).float() for _ in range(2))
    c = torch.empty(64, 64, device=DEVICE)
    product_kernel[(1,)](*(x.to(DEVICE, torch.float8_e4m3fn) for x in (a, b)), c, BLOCK=64)
    assert torch.equal(c.cpu(), a @ b)


@interpreter_only
def test_the_stock_interpreter_still_has_to_be_mended(monkeypatch):
    import triton.runtime.interpreter as interpreter

    import triton_interpreter

    monkeypatch.setattr(interpreter, "_convert_float", triton_interpreter._stock_convert)
    assert cast(torch.tensor([125.06]), torch.float8_e4m3fn).item() != 128


@interpreter_only
def test_reading_and_writing_outside_a_tensor_is_an_error():
    x = torch.zeros(100)
    for size in (x, torch.zeros(99)), (torch.zeros(99), x):
        with pytest.raises(Exception, match="1 of 100 addresses lie outside the kernel's tensors"):
            cast_kernel[(1,)](*size, 100, BLOCK=128)


@interpreter_only
def test_shuffling_finds_a_result_that_depends_on_the_order_of_programs():
    from triton_interpreter import shuffled_programs

    x = torch.zeros(1, dtype=torch.int32)
    last = set()
    for seed in range(4):
        with shuffled_programs(seed):
            last_program_kernel[(8,)](x)
        last.add(x.item())
    assert len(last) > 1
