"""SwiGLU straight into FP8: silu(gate) * up, times the gate's weight, quantised without a detour by memory.

The result is never stored in high precision: the forward pass needs it in rows for w2's product, the
backward pass computes it again (V3 section 3.3.3), in columns for w2's Wgrad.

Legend: S rows, I inner width, Y = ceil(I / 128), E experts, P rows with every expert's padded to a
multiple of 128, Z = P / 128.
"""

from types import ModuleType

from torch import Tensor

from deepseek_mini_kernels.backend import Backend, choose
from deepseek_mini_kernels.formats import Scales
from deepseek_mini_kernels.matmul import require
from deepseek_mini_kernels.swiglu import naive


def swiglu_quantize(
    gate_SI: Tensor,
    up_SI: Tensor,
    weights_S: Tensor | None = None,
    scales: Scales = "fp32",
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """`(q_SI, scale_SY)`: `quantize_activation` of silu(gate) * up * weights, computed in float32."""
    ops = _ops(gate_SI, up_SI, weights_S, backend)
    return ops.swiglu_quantize(gate_SI, up_SI, weights_S, scales)


def swiglu_quantize_columns(
    gate_SI: Tensor,
    up_SI: Tensor,
    weights_S: Tensor | None = None,
    counts_E: Tensor | None = None,
    scales: Scales = "fp32",
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """`(q_IP, scale_IZ)`: `quantize_columns` of silu(gate) * up * weights, computed in float32."""
    ops = _ops(gate_SI, up_SI, weights_S, backend)
    return ops.swiglu_quantize_columns(gate_SI, up_SI, weights_S, counts_E, scales)


def _ops(gate_SI: Tensor, up_SI: Tensor, weights_S: Tensor | None, backend: Backend) -> ModuleType:
    require(
        gate_SI.ndim == 2 and gate_SI.shape == up_SI.shape and gate_SI.dtype == up_SI.dtype,
        f"gate {list(gate_SI.shape)} {gate_SI.dtype} and up {list(up_SI.shape)} {up_SI.dtype} must be alike",
    )
    require(weights_S is None or weights_S.shape == gate_SI.shape[:1], "there must be one weight per row")
    if choose(gate_SI, backend) == "naive":
        return naive
    from deepseek_mini_kernels.swiglu import triton

    return triton
