"""The FP8 arithmetic by the name of its backend; `reference` is the kernels' own, block after block.

It runs on the CPU also where there is a GPU: what one does, test_on_gpu.py asks.
"""

import torch
from torch import Tensor

from deepseek_mini.config import Backend, Format, PrecisionConfig, Scales
from deepseek_mini.precision.arithmetic import Arithmetic, build_arithmetic
from deepseek_mini.precision.products import KernelProducts
from kernel_helpers import HAS_TRITON, INTERPRETED

if HAS_TRITON and INTERPRETED:
    import triton_interpreter

    triton_interpreter.mend()


def normal(*shape: int, seed: int = 0, size: float = 1.0) -> Tensor:
    """Normal numbers."""
    return size * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def arithmetic(backend: str, scales: str = "fp32") -> Arithmetic:
    if backend == "reference":
        quantizers = build_arithmetic(
            PrecisionConfig(Format.fp8, Backend.emulated, Scales[scales])
        ).quantizers
        return Arithmetic(quantizers, KernelProducts("naive"))
    return build_arithmetic(PrecisionConfig(Format.fp8, Backend[backend], Scales[scales]))
