"""SwiGLU and quantisation in one kernel: tiles of rows, or transposed tiles of 128 x 128."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from deepseek_mini_kernels.configs import SWIGLU_COLUMNS, SWIGLU_ROWS
from deepseek_mini_kernels.formats import BLOCK, E4M3, Scales, blocks
from deepseek_mini_kernels.groups import locate, power_of_two_above
from deepseek_mini_kernels.launch import launch
from deepseek_mini_kernels.quantize.naive import padded_rows
from deepseek_mini_kernels.quantize.triton import cast, magnitude, scale_of


def swiglu_quantize(
    gate_SI: Tensor, up_SI: Tensor, weights_S: Tensor | None, scales: Scales
) -> tuple[Tensor, Tensor]:
    gate_SI, up_SI = gate_SI.contiguous(), up_SI.contiguous()
    s, i = gate_SI.shape
    q_SI = torch.empty_like(gate_SI, dtype=E4M3)
    scale_YS = gate_SI.new_empty(blocks(i), s, dtype=torch.float32)
    launch(
        SWIGLU_ROWS,
        (triton.cdiv(s, SWIGLU_ROWS.tile["BLOCK_M"]), blocks(i)),
        {"POW2": scales == "pow2", "WEIGHTED": weights_S is not None},
        gate_ptr=gate_SI,
        up_ptr=up_SI,
        weights_ptr=scale_YS if weights_S is None else weights_S.float().contiguous(),
        q_ptr=q_SI,
        scale_ptr=scale_YS,
        S=s,
        INNER=i,
    )
    return q_SI, scale_YS.T


def swiglu_quantize_columns(
    gate_SI: Tensor, up_SI: Tensor, weights_S: Tensor | None, counts_E: Tensor | None, scales: Scales
) -> tuple[Tensor, Tensor]:
    gate_SI, up_SI = gate_SI.contiguous(), up_SI.contiguous()
    s, i = gate_SI.shape
    n_groups = 1 if counts_E is None else len(counts_E)
    p = padded_rows(s, n_groups)
    q_IP = gate_SI.new_empty(i, p, dtype=E4M3)
    scale_ZI = gate_SI.new_empty(p // BLOCK, i, dtype=torch.float32)
    launch(
        SWIGLU_COLUMNS,
        (p // BLOCK, blocks(i)),
        {
            "POW2": scales == "pow2",
            "WEIGHTED": weights_S is not None,
            "GROUPED": counts_E is not None,
            "GROUPS": power_of_two_above(n_groups),
        },
        gate_ptr=gate_SI,
        up_ptr=up_SI,
        weights_ptr=scale_ZI if weights_S is None else weights_S.float().contiguous(),
        counts_ptr=scale_ZI if counts_E is None else counts_E.contiguous(),
        qt_ptr=q_IP,
        scale_t_ptr=scale_ZI,
        S=s,
        INNER=i,
        P=p,
        E=n_groups,
    )
    return q_IP, scale_ZI.T


@triton.jit
def swiglu(gate_ptr, up_ptr, weights_ptr, rows, columns, is_row, INNER, WEIGHTED: tl.constexpr):
    """A tile of silu(gate) * up * weight in float32; zeros outside."""
    places = rows.to(tl.int64)[:, None] * INNER + columns[None, :]
    inside = is_row[:, None] & (columns < INNER)[None, :]
    gate = tl.load(gate_ptr + places, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + places, mask=inside, other=0.0).to(tl.float32)
    inner = gate / (1.0 + tl.exp(-gate)) * up
    if WEIGHTED:
        inner *= tl.load(weights_ptr + rows, mask=is_row, other=0.0)[:, None]
    return inner


@triton.jit
def swiglu_rows_kernel(
    gate_ptr, up_ptr, weights_ptr, q_ptr, scale_ptr, S, INNER,
    POW2: tl.constexpr, WEIGHTED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inner = swiglu(gate_ptr, up_ptr, weights_ptr, rows, columns, rows < S, INNER, WEIGHTED)
    scale = scale_of(tl.max(magnitude(inner), 1), POW2)
    places = rows.to(tl.int64)[:, None] * INNER + columns[None, :]
    inside = (rows < S)[:, None] & (columns < INNER)[None, :]
    tl.store(q_ptr + places, cast(inner, tl.broadcast_to(scale[:, None], inner.shape)), mask=inside)
    tl.store(scale_ptr + tl.program_id(1).to(tl.int64) * S + rows, scale, mask=rows < S)


@triton.jit
def swiglu_columns_kernel(
    gate_ptr, up_ptr, weights_ptr, counts_ptr, qt_ptr, scale_t_ptr, S, INNER, P, E,
    POW2: tl.constexpr, WEIGHTED: tl.constexpr, GROUPED: tl.constexpr, GROUPS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    z = tl.program_id(0)
    if GROUPED:
        _, first_row, n_rows, _ = locate(counts_ptr, z, E, BLOCK, GROUPS)
    else:
        first_row, n_rows = z * BLOCK, S - z * BLOCK
    in_tile = tl.arange(0, BLOCK)
    columns = tl.program_id(1) * BLOCK + in_tile
    inner = swiglu(
        gate_ptr, up_ptr, weights_ptr, first_row + in_tile, columns, in_tile < n_rows, INNER, WEIGHTED
    )  # fmt: skip
    scale = scale_of(tl.max(magnitude(inner), 0), POW2)
    q_t = tl.trans(cast(inner, tl.broadcast_to(scale[None, :], inner.shape)))
    places_t = columns.to(tl.int64)[:, None] * P + (z * BLOCK + in_tile)[None, :]
    tl.store(qt_ptr + places_t, q_t, mask=tl.broadcast_to((columns < INNER)[:, None], q_t.shape))
    tl.store(scale_t_ptr + z.to(tl.int64) * INNER + columns, scale, mask=columns < INNER)
