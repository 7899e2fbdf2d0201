"""FP8 matrix product on tensor cores: four wgmma of 32 elements, then float32 on the other cores.

Factors of tiles are stored `[Y, M]` and `[Y, N]`, those of blocks `[X, Y]`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from deepseek_mini_kernels.configs import matmul_config, width_of
from deepseek_mini_kernels.launch import aligned, launch


def block_scaled_matmul(
    a_MK: Tensor, a_scale_MY: Tensor, b_NK: Tensor, b_scale: Tensor, dtype: torch.dtype
) -> Tensor:
    a_MK, b_NK = a_MK.contiguous(), b_NK.contiguous()
    (m, k), n = a_MK.shape, len(b_NK)
    b_tiles = len(b_scale) == n and n > 1
    c_MN = a_MK.new_empty(m, n, dtype=dtype)
    config = matmul_config(m, width_of(k, aligned(a_MK, b_NK, k, n)), b_tiles)
    launch(
        config,
        (triton.cdiv(m, config.tile["BLOCK_M"]) * triton.cdiv(n, config.tile["BLOCK_N"]),),
        {},
        a_ptr=a_MK,
        a_scale_ptr=a_scale_MY.T.contiguous(),
        b_ptr=b_NK,
        b_scale_ptr=b_scale.T.contiguous() if b_tiles else b_scale.contiguous(),
        c_ptr=c_MN,
        M=m,
        N=n,
        K=k,
    )
    return c_MN


@triton.jit
def accumulate(
    a_ptrs, a_scale_ptrs, a_scale_step, b_ptrs, b_scale_ptrs, b_scale_step, K,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr, B_TILES: tl.constexpr,
):  # fmt: skip
    """Sum over blocks of 128 along K of factor * product, float32 `[BLOCK_M, BLOCK_N]`.

    `b_scale_ptrs` are pointers of `[BLOCK_N]` with tiles, one pointer with blocks.
    """
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    in_block = tl.arange(0, BLOCK_K)
    for first in range(0, K, BLOCK_K):
        if EVEN_K:
            a = tl.load(a_ptrs)
            b = tl.load(b_ptrs)
        else:
            a = tl.load(a_ptrs, mask=(in_block < K - first)[None, :], other=0.0)
            b = tl.load(b_ptrs, mask=(in_block < K - first)[:, None], other=0.0)
        a_scale, b_scale = tl.load(a_scale_ptrs), tl.load(b_scale_ptrs)
        if B_TILES:
            total += tl.dot(a, b) * (a_scale[:, None] * b_scale[None, :])
        else:
            total += tl.dot(a, b) * (a_scale * b_scale)[:, None]
        a_ptrs += BLOCK_K
        b_ptrs += BLOCK_K
        a_scale_ptrs += a_scale_step
        b_scale_ptrs += b_scale_step
    return total


@triton.jit
def block_scaled_matmul_kernel(
    a_ptr, a_scale_ptr, b_ptr, b_scale_ptr, c_ptr, M, N, K,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BAND: tl.constexpr,
    EVEN_K: tl.constexpr, B_TILES: tl.constexpr,
):  # fmt: skip
    """Programs go through the result in bands of `BAND` tiles, so that neighbours share operands in L2."""
    tiles_m, tiles_n = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    band = tl.program_id(0) // (BAND * tiles_n)
    place = tl.program_id(0) % (BAND * tiles_n)
    height = tl.minimum(tiles_m - band * BAND, BAND)
    first_m = (band * BAND + place % height) * BLOCK_M
    first_n = (place // height) * BLOCK_N

    rows, columns = first_m + tl.arange(0, BLOCK_M), first_n + tl.arange(0, BLOCK_N)
    a_rows, b_rows = rows % M, columns % N  # past the edge any rows will do: they are not stored
    k = tl.arange(0, BLOCK_K)
    if B_TILES:
        b_scale_ptrs, b_scale_step = b_scale_ptr + b_rows, N
    else:
        b_scale_ptrs, b_scale_step = b_scale_ptr + first_n // BLOCK_K * tl.cdiv(K, BLOCK_K), 1
    total = accumulate(
        a_ptr + a_rows.to(tl.int64)[:, None] * K + k[None, :], a_scale_ptr + a_rows, M,
        b_ptr + b_rows.to(tl.int64)[None, :] * K + k[:, None], b_scale_ptrs, b_scale_step, K,
        BLOCK_M, BLOCK_N, BLOCK_K, EVEN_K, B_TILES,
    )  # fmt: skip
    inside = (rows < M)[:, None] & (columns < N)[None, :]
    places = rows.to(tl.int64)[:, None] * N + columns[None, :]
    tl.store(c_ptr + places, total.to(c_ptr.dtype.element_ty), mask=inside)
