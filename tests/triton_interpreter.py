"""Triton's CPU interpreter, made to round as a GPU does, and able to run programs in any order.

The interpreter of triton 3.6 to 3.9 loses carries when it rounds to FP8, truncates to bfloat16, and reads
NaN and infinity of FP8 as numbers. Casts go through torch instead, which is what `mend` puts in place.
`TRITON_INTERPRET=1` must be set before triton is first imported: `conftest.py` does.
"""

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch
import triton.language as tl
import triton.runtime.interpreter as interpreter
from triton._C.libtriton import ir

TORCH = {
    tl.float8e4nv: torch.float8_e4m3fn,
    tl.float8e5: torch.float8_e5m2,
    tl.bfloat16: torch.bfloat16,
    tl.float16: torch.float16,
    tl.float32: torch.float32,
}
SATURATES = {tl.float8e4nv: 448.0, tl.float8e5: 57344.0}
"""Largest numbers of the formats whose conversion on a GPU saturates (PTX `cvt.rn.satfinite`)."""
BITS = {8: (np.uint8, torch.uint8), 16: (np.int16, torch.int16), 32: (np.int32, torch.int32)}

_stock_convert = interpreter._convert_float
_stock_dot = interpreter.InterpreterBuilder.create_dot
_stock_init_args = interpreter.GridExecutor._init_args_hst
_stock_load = interpreter.InterpreterBuilder.create_masked_load
_stock_store = interpreter.InterpreterBuilder.create_masked_store
_stock_set_grid_idx = interpreter.InterpreterBuilder.set_grid_idx


_memory: list[tuple[int, int]] = []
"""First address and end of each tensor of the launch that runs."""


def mend() -> None:
    """Replace the interpreter's casts between floating-point formats, and its products of bfloat16.

    Loads and stores outside the tensors that a kernel was given raise an error from then on.
    """
    interpreter._convert_float = _convert_float
    interpreter.GridExecutor._init_args_hst = _init_args
    builder = interpreter.InterpreterBuilder
    builder.create_dot, builder.create_masked_load = _create_dot, _load
    builder.create_masked_store = _store


def _convert_float(data, source, target, rounding):
    nearest = rounding in (None, ir.ROUNDING_MODE.RTNE)
    if source not in TORCH or target not in TORCH or not nearest:
        return _stock_convert(data, source, target, rounding)
    x = _tensor(data, source)
    if limit := SATURATES.get(target):
        x = x.float().clamp(-limit, limit)  # which keeps NaN
    view = BITS[target.primitive_bitwidth][1]
    bits = x.to(TORCH[target]).view(view).numpy()
    return bits.view(f"uint{target.primitive_bitwidth}").reshape(data.shape)


def _create_dot(self, a, b, d, *options):
    if tl.bfloat16 not in (a.dtype.scalar, b.dtype.scalar):
        return _stock_dot(self, a, b, d, *options)
    product = np.matmul(*(_tensor(x.data, x.dtype.scalar).float().numpy() for x in (a, b)))
    return interpreter.TensorHandle(product + d.data, d.dtype.scalar)


def _tensor(data: np.ndarray, dtype) -> torch.Tensor:
    bits = np.ascontiguousarray(data).view(BITS[dtype.primitive_bitwidth][0])
    return torch.from_numpy(bits.copy()).view(TORCH[dtype])


def _init_args(self, args, keywords):
    tensors = [value for value in (*args, *keywords.values()) if isinstance(value, torch.Tensor)]
    _memory[:] = [(t.data_ptr(), t.data_ptr() + t.numel() * t.itemsize) for t in tensors]
    return _stock_init_args(self, args, keywords)


def _load(self, pointers, mask, *options):
    _require_inside(pointers, mask)
    return _stock_load(self, pointers, mask, *options)


def _store(self, pointers, value, mask, *options):
    _require_inside(pointers, mask)
    return _stock_store(self, pointers, value, mask, *options)


def _require_inside(pointers, mask) -> None:
    addresses = pointers.data[np.broadcast_to(mask.data, pointers.data.shape)].astype(np.int64)
    inside = np.zeros(addresses.shape, bool)
    for first, end in _memory:
        inside |= (addresses >= first) & (addresses < end)
    if not inside.all():
        raise IndexError(f"{(~inside).sum()} of {inside.size} addresses lie outside the kernel's tensors")


@contextlib.contextmanager
def shuffled_programs(seed: int) -> Iterator[None]:
    """Run the programs of every launch in a random order, each once: who relies on an order is found out."""
    generator, orders = random.Random(seed), {}

    def set_grid_idx(self, x, y, z):
        grid = tuple(self.grid_dim)
        if (x, y, z) == (0, 0, 0):
            places = [(i, j, k) for i in range(grid[0]) for j in range(grid[1]) for k in range(grid[2])]
            orders[grid] = dict(zip(places, generator.sample(places, len(places)), strict=True))
        _stock_set_grid_idx(self, *orders[grid][x, y, z])

    interpreter.InterpreterBuilder.set_grid_idx = set_grid_idx
    try:
        yield
    finally:
        interpreter.InterpreterBuilder.set_grid_idx = _stock_set_grid_idx
