"""FP8 quantisation: activations in 1x128 or 128x1 tiles, weights in 128x128 blocks (V3 section 3.3.2).

Everything returns E4M3 values and float32 dequantisation factors: x ~ q * scale, where
scale = max(amax, 1e-4) / 448 of the tile, with `scales="pow2"` rounded up to a power of two. Gradients want
`smallest=SMALLEST_GRADIENT` instead of 1e-4. Zeros stay zeros. A tile with a NaN or an infinity becomes NaN
as a whole, values and scale; other tiles do not feel it.

Legend: M tokens, K channels, N output width, Y = ceil(K / 128), X = ceil(N / 128), E experts,
P tokens with every group padded to a multiple of 128, Z = P / 128.

The factors of activations are stored token after token (strides `[1, M]`), so that a kernel reads those
of neighbouring tokens together; torch's block-scaled `scaled_mm` asks for the same.
"""

from types import ModuleType

from torch import Tensor

from deepseek_mini_kernels.backend import Backend, choose
from deepseek_mini_kernels.formats import SMALLEST_AMAX, Scales
from deepseek_mini_kernels.quantize import naive


def quantize_activation(
    x_MK: Tensor, scales: Scales = "fp32", backend: Backend = "auto", smallest: float = SMALLEST_AMAX
) -> tuple[Tensor, Tensor]:
    """`(q_MK, scale_MY)` in tiles of 1 token x 128 channels: operands of Fprop and Dgrad."""
    _require_matrix("x_MK", x_MK)
    return _ops(x_MK, scales, backend).quantize_activation(x_MK, scales, smallest)


def dequantize_activation(q_MK: Tensor, scale_MY: Tensor) -> Tensor:
    """The float32 activation `[M, K]`: every value times the factor of its tile. Works for columns too."""
    return naive.dequantize_activation(q_MK, scale_MY)


def quantize_columns(
    x_MK: Tensor,
    counts_E: Tensor | None = None,
    scales: Scales = "fp32",
    backend: Backend = "auto",
    smallest: float = SMALLEST_AMAX,
) -> tuple[Tensor, Tensor]:
    """`(q_KP, scale_KZ)` in tiles of 128 tokens x 1 channel, transposed: an operand of Wgrad.

    With `counts_E` (int64, sums to M) the tokens are those of E experts, one after the other, and tiles
    start anew with each expert. Places between the experts' tokens hold zeros.
    """
    _require_matrix("x_MK", x_MK)
    return _ops(x_MK, scales, backend).quantize_columns(x_MK, counts_E, scales, smallest)


def quantize_rows_and_columns(
    x_MK: Tensor,
    counts_E: Tensor | None = None,
    scales: Scales = "fp32",
    backend: Backend = "auto",
    smallest: float = SMALLEST_AMAX,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`quantize_activation` and `quantize_columns` in one pass over x: `(q_MK, scale_MY, q_KP, scale_KZ)`."""
    _require_matrix("x_MK", x_MK)
    return _ops(x_MK, scales, backend).quantize_rows_and_columns(x_MK, counts_E, scales, smallest)


def requantize_columns(
    q_MK: Tensor,
    scale_MY: Tensor,
    counts_E: Tensor | None = None,
    scales: Scales = "fp32",
    backend: Backend = "auto",
    smallest: float = SMALLEST_AMAX,
) -> tuple[Tensor, Tensor]:
    """`quantize_columns` of a stored activation: dequantised, transposed and quantised again, as V3 does."""
    _require_matrix("q_MK", q_MK)
    return _ops(q_MK, scales, backend).requantize_columns(q_MK, scale_MY, counts_E, scales, smallest)


def quantize_weight(
    w_NK: Tensor, scales: Scales = "fp32", backend: Backend = "auto"
) -> tuple[Tensor, Tensor]:
    """`(q_NK, scale_XY)` in blocks of 128 x 128; a stack `[E, N, K]` is quantised expert by expert.

    Quantising what `dequantize_weight` returned gives the same bits again.
    """
    _require_matrix("w_NK", w_NK, stack=True)
    return _ops(w_NK, scales, backend).quantize_weight(w_NK, scales)


def quantize_weight_and_transpose(
    w_NK: Tensor, scales: Scales = "fp32", backend: Backend = "auto"
) -> tuple[Tensor, Tensor, Tensor]:
    """`(q_NK, q_KN, scale_XY)` in one pass: `q_KN` with `scale_XY.mT` is the weight of Dgrad."""
    _require_matrix("w_NK", w_NK, stack=True)
    return _ops(w_NK, scales, backend).quantize_weight_and_transpose(w_NK, scales)


def dequantize_weight(q_NK: Tensor, scale_XY: Tensor) -> Tensor:
    """The float32 weight `[N, K]` or `[E, N, K]`: every value times the factor of its block."""
    return naive.dequantize_weight(q_NK, scale_XY)


def _ops(x: Tensor, scales: Scales, backend: Backend) -> ModuleType:
    if scales not in ("fp32", "pow2"):
        raise ValueError(f"kernels: scales={scales!r} is unknown; there are fp32 and pow2")
    if choose(x, backend) == "naive":
        return naive
    from deepseek_mini_kernels.quantize import triton

    return triton


def _require_matrix(name: str, x: Tensor, stack: bool = False) -> None:
    if x.ndim != 2 and not (stack and x.ndim == 3):
        allowed = "2 or 3" if stack else "2"
        raise ValueError(f"kernels: {name} must have {allowed} dimensions, got shape {list(x.shape)}")
