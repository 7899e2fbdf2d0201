"""FP8 matrix product with scaled tiles and blocks, promoted to float32 every 128 elements (V3 section 3.3.2).

    Fprop  y_MN  = x_MK  w_NK^T     x in 1x128 tiles along K       w in 128x128 blocks
    Dgrad  dx_MK = dy_MN w_KN^T     dy in 1x128 tiles along N      w transposed, the same blocks
    Wgrad  dw_NK = dy_NP x_KP^T     dy, x in 128x1 tiles, tokens P padded to a multiple of 128

Legend: M rows, N columns, K summed, Y = ceil(K / 128), X = ceil(N / 128).
"""

import torch
from torch import Tensor

from deepseek_mini_kernels.backend import Backend, choose
from deepseek_mini_kernels.formats import E4M3
from deepseek_mini_kernels.formats import blocks as n_blocks
from deepseek_mini_kernels.matmul import naive
from deepseek_mini_kernels.matmul.hopper import HopperAccumulation

__all__ = ["HopperAccumulation", "block_scaled_matmul"]


def block_scaled_matmul(
    a_MK: Tensor,
    a_scale_MY: Tensor,
    b_NK: Tensor,
    b_scale: Tensor,
    dtype: torch.dtype = torch.float32,
    accumulation: HopperAccumulation | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """`a b^T` of dequantised E4M3 operands, `[M, N]` in `dtype` (float32 or bfloat16).

    `b_scale` is `[X, Y]` for 128x128 blocks or `[N, Y]` for 1x128 tiles. Sums are float32; a NaN in a
    factor reaches just the rows and columns of its tile or block. `accumulation` emulates the tensor
    core's own sums and exists in naive only. Raises ValueError on other shapes and dtypes.
    """
    (m, k), (n, width) = a_MK.shape, b_NK.shape
    require_e4m3(a_MK, b_NK)
    require(width == k, f"a {[m, k]} and b {[n, width]} have different widths")
    check_scales(a_scale_MY, b_scale, m, n, k)
    if accumulation is not None:
        require(backend != "triton", "accumulation is an emulation; use backend=naive")
        backend = "naive"
    if choose(a_MK, backend) == "naive":
        return naive.block_scaled_matmul(a_MK, a_scale_MY, b_NK, b_scale, dtype, accumulation)
    from deepseek_mini_kernels.matmul import triton

    return triton.block_scaled_matmul(a_MK, a_scale_MY, b_NK, b_scale, dtype)


def check_scales(
    a_scale: Tensor, b_scale: Tensor, m: int, n: int, k: int, tiles: bool = True, blocks: bool = True
) -> None:
    """Raises ValueError unless the factors fit `a [m, k]` in tiles and `b [n, k]` in tiles or blocks."""
    y = n_blocks(k)
    require(a_scale.shape == (m, y), f"factors of a {[m, k]} must be {[m, y]}, got {list(a_scale.shape)}")
    allowed = [[n_blocks(n), y]] * blocks + [[n, y]] * tiles
    got = list(b_scale.shape[-2:])
    require(got in allowed, f"factors of b {[n, k]} must be {' or '.join(map(str, allowed))}, got {got}")


def require_e4m3(a: Tensor, b: Tensor) -> None:
    require(a.dtype == b.dtype == E4M3, f"operands must be {E4M3}, got {a.dtype} and {b.dtype}")


def require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(f"kernels: {message}")
