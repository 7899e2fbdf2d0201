"""SwiGLU in float32, then quantised. Legend: as in the package."""

from torch import Tensor

from deepseek_mini_kernels.formats import Scales
from deepseek_mini_kernels.quantize import naive as quantize


def swiglu(gate_SI: Tensor, up_SI: Tensor, weights_S: Tensor | None) -> Tensor:
    gate_SI = gate_SI.float()
    inner_SI = gate_SI / (1 + (-gate_SI).exp()) * up_SI.float()
    return inner_SI if weights_S is None else inner_SI * weights_S.float()[:, None]


def swiglu_quantize(
    gate_SI: Tensor, up_SI: Tensor, weights_S: Tensor | None, scales: Scales
) -> tuple[Tensor, Tensor]:
    return quantize.quantize_activation(swiglu(gate_SI, up_SI, weights_S), scales)


def swiglu_quantize_columns(
    gate_SI: Tensor, up_SI: Tensor, weights_S: Tensor | None, counts_E: Tensor | None, scales: Scales
) -> tuple[Tensor, Tensor]:
    return quantize.quantize_columns(swiglu(gate_SI, up_SI, weights_S), counts_E, scales)
