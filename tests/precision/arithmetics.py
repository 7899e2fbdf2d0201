"""The FP8 arithmetic by the name of its backend; `reference` is the kernels' own, block after block."""

from deepseek_mini.config import Backend, Format, PrecisionConfig, Scales
from deepseek_mini.precision.arithmetic import Arithmetic, build_arithmetic
from deepseek_mini.precision.products import KernelProducts
from kernel_helpers import HAS_TRITON, INTERPRETED

if HAS_TRITON and INTERPRETED:
    import triton_interpreter

    triton_interpreter.mend()


def arithmetic(backend: str, scales: str = "fp32") -> Arithmetic:
    if backend == "reference":
        quantizers = build_arithmetic(
            PrecisionConfig(Format.fp8, Backend.emulated, Scales[scales])
        ).quantizers
        return Arithmetic(quantizers, KernelProducts("naive"))
    return build_arithmetic(PrecisionConfig(Format.fp8, Backend[backend], Scales[scales]))
