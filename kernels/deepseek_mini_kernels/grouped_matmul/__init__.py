"""FP8 products of the routed experts: one launch for all experts, whose token counts stay on the device.

    Fprop  y_SN   = x_SK  w_ENK^T   each assignment with its own expert's weight
    Dgrad  dx_SK  = dy_SN w_EKN^T   the same, with transposed weights
    Wgrad  dw_ENK = dy_NP x_KP^T    over each expert's own tokens

Legend: S assignments in expert order, E experts, N outputs, K inputs, Y = ceil(K / 128), X = ceil(N / 128),
P tokens with every expert's padded to a multiple of 128, Z = P / 128.
"""

import torch
from torch import Tensor

from deepseek_mini_kernels.backend import Backend, choose
from deepseek_mini_kernels.formats import BLOCK
from deepseek_mini_kernels.grouped_matmul import naive
from deepseek_mini_kernels.matmul import check_scales, require, require_e4m3
from deepseek_mini_kernels.matmul.hopper import HopperAccumulation


def grouped_matmul(
    a_SK: Tensor,
    a_scale_SY: Tensor,
    b_ENK: Tensor,
    b_scale_EXY: Tensor,
    counts_E: Tensor,
    dtype: torch.dtype = torch.float32,
    accumulation: HopperAccumulation | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """`[S, N]`: rows of expert e times `b_ENK[e]^T`, weights in 128x128 blocks.

    `counts_E` (int64) are the rows of each expert and sum to S; any may be zero. Rows and factors are
    those of `quantize_activation`, weights those of `quantize_weight`. Raises ValueError on other shapes.
    """
    (s, k), (e, n, width) = a_SK.shape, b_ENK.shape
    require_e4m3(a_SK, b_ENK)
    require(width == k, f"a {[s, k]} and b {[e, n, width]} have different widths")
    require(counts_E.shape == (e,), f"there are {e} experts and counts of shape {list(counts_E.shape)}")
    require(len(b_scale_EXY) == e, f"there are {e} experts and factors of {len(b_scale_EXY)}")
    check_scales(a_scale_SY, b_scale_EXY, s, n, k, tiles=False)
    if accumulation is not None:
        require(backend != "triton", "accumulation is an emulation; use backend=naive")
        backend = "naive"
    if choose(a_SK, backend) == "naive":
        return naive.grouped_matmul(a_SK, a_scale_SY, b_ENK, b_scale_EXY, counts_E, dtype, accumulation)
    from deepseek_mini_kernels.grouped_matmul import triton

    return triton.grouped_matmul(a_SK, a_scale_SY, b_ENK, b_scale_EXY, counts_E, dtype)


def grouped_wgrad(
    a_NP: Tensor,
    a_scale_NZ: Tensor,
    b_KP: Tensor,
    b_scale_KZ: Tensor,
    counts_E: Tensor,
    dtype: torch.dtype = torch.float32,
    accumulation: HopperAccumulation | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """`[E, N, K]`: the product of each expert's own tokens; zeros for an expert without tokens.

    Operands and factors are those of `quantize_columns` with the same counts. Raises ValueError if their
    widths differ.
    """
    (n, p), (k, width) = a_NP.shape, b_KP.shape
    require_e4m3(a_NP, b_KP)
    require(width == p, f"a {[n, p]} and b {[k, width]} have different widths")
    require(p % BLOCK == 0, f"tokens must be padded to a multiple of 128, got {p}: see quantize_columns")
    check_scales(a_scale_NZ, b_scale_KZ, n, k, p, blocks=False)
    if accumulation is not None:
        require(backend != "triton", "accumulation is an emulation; use backend=naive")
        backend = "naive"
    if choose(a_NP, backend) == "naive":
        return naive.grouped_wgrad(a_NP, a_scale_NZ, b_KP, b_scale_KZ, counts_E, dtype, accumulation)
    from deepseek_mini_kernels.grouped_matmul import triton

    return triton.grouped_wgrad(a_NP, a_scale_NZ, b_KP, b_scale_KZ, counts_E, dtype)
