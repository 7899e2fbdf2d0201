"""Grouped FP8 products. The grid is as large as any split of the rows could need; spare programs end."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from deepseek_mini_kernels.configs import grouped_config, wgrad_config, width_of
from deepseek_mini_kernels.groups import locate, power_of_two_above
from deepseek_mini_kernels.launch import aligned, launch
from deepseek_mini_kernels.matmul.triton import accumulate


def grouped_matmul(
    a_SK: Tensor,
    a_scale_SY: Tensor,
    b_ENK: Tensor,
    b_scale_EXY: Tensor,
    counts_E: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    a_SK, b_ENK = a_SK.contiguous(), b_ENK.contiguous()
    s, (e, n, k) = len(a_SK), b_ENK.shape
    c_SN = a_SK.new_empty(s, n, dtype=dtype)
    config = grouped_config(s // e, width_of(k, aligned(a_SK, b_ENK, k, n)))
    height = config.tile["BLOCK_M"]
    most_tiles = (s + (height - 1) * min(e, s)) // height
    launch(
        config,
        (triton.cdiv(n, config.tile["BLOCK_N"]), most_tiles),
        {"GROUPS": power_of_two_above(e)},
        a_ptr=a_SK,
        a_scale_ptr=a_scale_SY.T.contiguous(),
        b_ptr=b_ENK,
        b_scale_ptr=b_scale_EXY.contiguous(),
        c_ptr=c_SN,
        counts_ptr=counts_E.contiguous(),
        S=s,
        N=n,
        K=k,
        E=e,
    )
    return c_SN


def grouped_wgrad(
    a_NP: Tensor, a_scale_NZ: Tensor, b_KP: Tensor, b_scale_KZ: Tensor, counts_E: Tensor, dtype: torch.dtype
) -> Tensor:
    a_NP, b_KP = a_NP.contiguous(), b_KP.contiguous()
    (n, p), k, e = a_NP.shape, len(b_KP), len(counts_E)
    c_ENK = a_NP.new_empty(e, n, k, dtype=dtype)
    config = wgrad_config(n, aligned(a_NP, b_KP, k, n))
    launch(
        config,
        (triton.cdiv(k, config.tile["BLOCK_N"]), triton.cdiv(n, config.tile["BLOCK_M"]), e),
        {"GROUPS": power_of_two_above(e)},
        a_ptr=a_NP,
        a_scale_ptr=a_scale_NZ.T.contiguous(),
        b_ptr=b_KP,
        b_scale_ptr=b_scale_KZ.T.contiguous(),
        c_ptr=c_ENK,
        counts_ptr=counts_E.contiguous(),
        N=n,
        K=k,
        P=p,
        E=e,
    )
    return c_ENK


@triton.jit
def grouped_matmul_kernel(
    a_ptr, a_scale_ptr, b_ptr, b_scale_ptr, c_ptr, counts_ptr, S, N, K, E,
    GROUPS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,
):  # fmt: skip
    """A tile of one expert's rows x `BLOCK_N` outputs, which lie in one row of weight blocks."""
    group, first_row, n_rows, _ = locate(counts_ptr, tl.program_id(1), E, BLOCK_M, GROUPS)
    if n_rows > 0:
        first_n = tl.program_id(0) * BLOCK_N
        in_tile, columns = tl.arange(0, BLOCK_M), first_n + tl.arange(0, BLOCK_N)
        rows = first_row + in_tile
        a_rows = first_row + in_tile % n_rows  # past the group's end any of its rows will do: not stored
        b_rows = group.to(tl.int64) * N + columns % N
        k, blocks_k = tl.arange(0, BLOCK_K), tl.cdiv(K, BLOCK_K)
        block = group * tl.cdiv(N, BLOCK_K) + first_n // BLOCK_K
        total = accumulate(
            a_ptr + a_rows.to(tl.int64)[:, None] * K + k[None, :], a_scale_ptr + a_rows, S,
            b_ptr + b_rows[None, :] * K + k[:, None], b_scale_ptr + block * blocks_k, 1, K,
            BLOCK_M, BLOCK_N, BLOCK_K, EVEN_K, False,
        )  # fmt: skip
        inside = (in_tile < n_rows)[:, None] & (columns < N)[None, :]
        places = rows.to(tl.int64)[:, None] * N + columns[None, :]
        tl.store(c_ptr + places, total.to(c_ptr.dtype.element_ty), mask=inside)


@triton.jit
def grouped_wgrad_kernel(
    a_ptr, a_scale_ptr, b_ptr, b_scale_ptr, c_ptr, counts_ptr, N, K, P, E,
    GROUPS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,
):  # fmt: skip
    """A tile of one expert's gradient: sums over the 128-token tiles of that expert."""
    e = tl.program_id(2)
    experts = tl.arange(0, GROUPS)
    counts = tl.load(counts_ptr + experts, mask=experts < E, other=0).to(tl.int32)
    tiles = tl.cdiv(counts, BLOCK_K)
    first_tile = tl.sum(tl.where(experts < e, tiles, 0), 0)
    n_tiles = tl.sum(tl.where(experts == e, tiles, 0), 0)

    rows = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    a_rows, b_rows = rows % N, columns % K  # past the edge any rows will do: they are not stored
    places = first_tile * BLOCK_K + tl.arange(0, BLOCK_K)
    total = accumulate(
        a_ptr + a_rows.to(tl.int64)[:, None] * P + places[None, :],
        a_scale_ptr + first_tile.to(tl.int64) * N + a_rows, N,
        b_ptr + b_rows.to(tl.int64)[None, :] * P + places[:, None],
        b_scale_ptr + first_tile.to(tl.int64) * K + b_rows, K, n_tiles * BLOCK_K,
        BLOCK_M, BLOCK_N, BLOCK_K, EVEN_K, True,
    )  # fmt: skip
    inside = (rows < N)[:, None] & (columns < K)[None, :]
    results = (e.to(tl.int64) * N + rows)[:, None] * K + columns[None, :]
    tl.store(c_ptr + results, total.to(c_ptr.dtype.element_ty), mask=inside)
