"""Quantisation kernels. Offsets of rows are 64-bit: a batch of V3's experts has over 2^31 elements.

Legend: as in the package. Factors of activations are stored `[Y, M]` and `[Z, K]`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from deepseek_mini_kernels.configs import QUANTIZE_ROWS, QUANTIZE_TILES, QUANTIZE_WEIGHT
from deepseek_mini_kernels.formats import BLOCK, E4M3, Scales, blocks
from deepseek_mini_kernels.groups import locate, power_of_two_above
from deepseek_mini_kernels.launch import launch
from deepseek_mini_kernels.quantize.naive import padded_rows


def quantize_activation(x_MK: Tensor, scales: Scales, smallest: float) -> tuple[Tensor, Tensor]:
    x_MK = x_MK.contiguous()
    m, k = x_MK.shape
    q_MK, scale_YM = torch.empty_like(x_MK, dtype=E4M3), _factors(x_MK, blocks(k), m)
    launch(
        QUANTIZE_ROWS,
        (triton.cdiv(m, QUANTIZE_ROWS.tile["BLOCK_M"]), blocks(k)),
        {"POW2": scales == "pow2", "SMALLEST": smallest},
        x_ptr=x_MK,
        q_ptr=q_MK,
        scale_ptr=scale_YM,
        M=m,
        K=k,
    )
    return q_MK, scale_YM.T


def quantize_columns(
    x_MK: Tensor, counts_E: Tensor | None, scales: Scales, smallest: float
) -> tuple[Tensor, Tensor]:
    return _quantize_tiles(x_MK, None, counts_E, scales, smallest, rows=False)[2:]


def quantize_rows_and_columns(
    x_MK: Tensor, counts_E: Tensor | None, scales: Scales, smallest: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _quantize_tiles(x_MK, None, counts_E, scales, smallest, rows=True)


def requantize_columns(
    q_MK: Tensor, scale_MY: Tensor, counts_E: Tensor | None, scales: Scales, smallest: float
) -> tuple[Tensor, Tensor]:
    return _quantize_tiles(q_MK, scale_MY.T.contiguous(), counts_E, scales, smallest, rows=False)[2:]


def quantize_weight(w_NK: Tensor, scales: Scales) -> tuple[Tensor, Tensor]:
    q_NK, _, scale_XY = _quantize_weight(w_NK, scales, transpose=False)
    return q_NK, scale_XY


def quantize_weight_and_transpose(w_NK: Tensor, scales: Scales) -> tuple[Tensor, Tensor, Tensor]:
    return _quantize_weight(w_NK, scales, transpose=True)


def _quantize_tiles(x_MK, stored_scale_YM, counts_E, scales, smallest, *, rows):
    """Tiles of 128 x 128: row-wise too if `rows`; dequantised first if there are stored factors."""
    x_MK = x_MK.contiguous()
    m, k = x_MK.shape
    n_groups = 1 if counts_E is None else len(counts_E)
    p = padded_rows(m, n_groups)
    q_KP, scale_ZK = x_MK.new_empty(k, p, dtype=E4M3), _factors(x_MK, p // BLOCK, k)
    q_MK, scale_YM = x_MK.new_empty(m * rows, k, dtype=E4M3), _factors(x_MK, blocks(k), m * rows)
    launch(
        QUANTIZE_TILES["both" if rows else "columns" if stored_scale_YM is None else "requantize"],
        (p // BLOCK, blocks(k)),
        {
            "POW2": scales == "pow2",
            "SMALLEST": smallest,
            "GROUPED": counts_E is not None,
            "GROUPS": power_of_two_above(n_groups),
        },
        x_ptr=x_MK,
        x_scale_ptr=scale_YM if stored_scale_YM is None else stored_scale_YM,
        counts_ptr=scale_YM if counts_E is None else counts_E.contiguous(),
        q_ptr=q_MK,
        scale_ptr=scale_YM,
        qt_ptr=q_KP,
        scale_t_ptr=scale_ZK,
        M=m,
        K=k,
        P=p,
        E=n_groups,
    )
    return q_MK, scale_YM.T, q_KP, scale_ZK.T


def _quantize_weight(w_NK, scales, *, transpose):
    w_ENK = w_NK.contiguous() if w_NK.ndim == 3 else w_NK.contiguous()[None]
    e, n, k = w_ENK.shape
    q_ENK, q_EKN = torch.empty_like(w_ENK, dtype=E4M3), w_ENK.new_empty(e, k, n * transpose, dtype=E4M3)
    scale_EXY = w_ENK.new_empty(e, blocks(n), blocks(k), dtype=torch.float32)
    launch(
        QUANTIZE_WEIGHT[transpose],
        (blocks(n), blocks(k), e),
        {"POW2": scales == "pow2"},
        w_ptr=w_ENK,
        q_ptr=q_ENK,
        qt_ptr=q_EKN,
        scale_ptr=scale_EXY,
        N=n,
        K=k,
    )
    if w_NK.ndim == 3:
        return q_ENK, q_EKN, scale_EXY
    return q_ENK[0], q_EKN[0], scale_EXY[0]


def _factors(x: Tensor, *shape: int) -> Tensor:
    return x.new_empty(*shape, dtype=torch.float32)


@triton.jit
def magnitude(x):
    """Bits of |x|: as integers they are in the order of the numbers, with infinity and NaN on top."""
    return x.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def scale_of(amax_bits, POW2: tl.constexpr, SMALLEST: tl.constexpr = 1e-4):
    """Dequantisation factors from the bits of the largest magnitudes."""
    amax = tl.maximum(amax_bits.to(tl.float32, bitcast=True), SMALLEST)
    scale = tl.div_rn(amax, tl.full(amax.shape, 448.0, tl.float32))
    if POW2:
        bits = (scale.to(tl.int32, bitcast=True) + 0x7FFFFF) & 0x7F800000
        scale = bits.to(tl.float32, bitcast=True)
    return tl.where(amax_bits >= 0x7F800000, float("nan"), scale)


@triton.jit
def cast(x, scale):
    """E4M3 of x / scale, both of the same shape; saturates, keeps NaN."""
    return tl.div_rn(x, scale).to(tl.float8e4nv)


@triton.jit
def quantize_rows_kernel(
    x_ptr, q_ptr, scale_ptr, M, K,
    POW2: tl.constexpr, SMALLEST: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    places = rows.to(tl.int64)[:, None] * K + columns[None, :]
    inside = (rows < M)[:, None] & (columns < K)[None, :]
    x = tl.load(x_ptr + places, mask=inside, other=0.0).to(tl.float32)
    scale = scale_of(tl.max(magnitude(x), 1), POW2, SMALLEST)
    tl.store(q_ptr + places, cast(x, tl.broadcast_to(scale[:, None], x.shape)), mask=inside)
    tl.store(scale_ptr + tl.program_id(1).to(tl.int64) * M + rows, scale, mask=rows < M)


@triton.jit
def quantize_tiles_kernel(
    x_ptr, x_scale_ptr, counts_ptr, q_ptr, scale_ptr, qt_ptr, scale_t_ptr, M, K, P, E,
    POW2: tl.constexpr, SMALLEST: tl.constexpr, GROUPED: tl.constexpr, GROUPS: tl.constexpr,
    ROWS: tl.constexpr, DEQUANTIZE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A tile of 128 tokens of one group x 128 channels; tiles past the last group write zeros."""
    z, y = tl.program_id(0), tl.program_id(1)
    if GROUPED:
        _, first_row, n_rows, _ = locate(counts_ptr, z, E, BLOCK, GROUPS)
    else:
        first_row, n_rows = z * BLOCK, M - z * BLOCK
    in_tile = tl.arange(0, BLOCK)
    rows, columns = first_row + in_tile, y * BLOCK + in_tile
    is_row, is_column = in_tile < n_rows, columns < K
    inside = is_row[:, None] & is_column[None, :]
    places = rows.to(tl.int64)[:, None] * K + columns[None, :]
    x = tl.load(x_ptr + places, mask=inside, other=0.0).to(tl.float32)
    if DEQUANTIZE:
        stored = tl.load(x_scale_ptr + y.to(tl.int64) * M + rows, mask=is_row, other=0.0)
        x = x * stored[:, None]
    if ROWS:
        scale = scale_of(tl.max(magnitude(x), 1), POW2, SMALLEST)
        tl.store(q_ptr + places, cast(x, tl.broadcast_to(scale[:, None], x.shape)), mask=inside)
        tl.store(scale_ptr + y.to(tl.int64) * M + rows, scale, mask=is_row)
    scale_t = scale_of(tl.max(magnitude(x), 0), POW2, SMALLEST)
    q_t = tl.trans(cast(x, tl.broadcast_to(scale_t[None, :], x.shape)))
    places_t = columns.to(tl.int64)[:, None] * P + (z * BLOCK + in_tile)[None, :]
    tl.store(qt_ptr + places_t, q_t, mask=tl.broadcast_to(is_column[:, None], q_t.shape))
    tl.store(scale_t_ptr + z.to(tl.int64) * K + columns, scale_t, mask=is_column)


@triton.jit
def quantize_weight_kernel(
    w_ptr, q_ptr, qt_ptr, scale_ptr, N, K,
    POW2: tl.constexpr, TRANSPOSE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    x, y, e = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    rows, columns = x * BLOCK + tl.arange(0, BLOCK), y * BLOCK + tl.arange(0, BLOCK)
    inside = (rows < N)[:, None] & (columns < K)[None, :]
    places = (e * N + rows)[:, None] * K + columns[None, :]
    w = tl.load(w_ptr + places, mask=inside, other=0.0).to(tl.float32)
    scale = scale_of(tl.max(tl.max(magnitude(w), 1), 0), POW2)
    q = cast(w, tl.broadcast_to(scale, w.shape))
    tl.store(q_ptr + places, q, mask=inside)
    if TRANSPOSE:
        places_t = (e * K + columns)[:, None] * N + rows[None, :]
        inside_t = (columns < K)[:, None] & (rows < N)[None, :]
        tl.store(qt_ptr + places_t, tl.trans(q), mask=inside_t)
    tl.store(scale_ptr + (e * tl.num_programs(0) + x) * tl.num_programs(1) + y, scale)
