"""What the device is and can do: its name, its memory, its matmul peak, and the arithmetic to use on it.

A peak is the denominator of MFU, so it comes with its source. GPUs: dense figures of their data sheets (those
with 2:4 sparsity are twice as high and do not apply to training). CPUs: measured. Others: None, not a guess.
"""

import os
import platform
import re
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from deepseek_mini.config import Backend, Device, Format, PrecisionConfig
from deepseek_mini.cost.devices import gpus

MEASURE_SECONDS = 0.3


@dataclass(frozen=True, slots=True)
class Peak:
    """Dense matmul peak of one device in one arithmetic."""

    flops_per_second: float | None
    """None where it is not known."""
    source: str
    """Where the figure is from, in words."""


def choose_device(device: Device) -> tuple[torch.device, str]:
    """The device to run on, and why, in words.

    `auto` is CUDA where there is some, else the CPU. Raises ValueError if the device asked for is absent.
    """
    if device is Device.auto:
        if torch.cuda.is_available():
            return torch.device("cuda"), "a CUDA device was found"
        mps = "; device=mps is there but untested" if torch.backends.mps.is_available() else ""
        return torch.device("cpu"), f"no CUDA device was found{mps}"
    if device is Device.cuda and not torch.cuda.is_available():
        fix = "check nvidia-smi" if torch.version.cuda else "install a CUDA build of torch"
        raise ValueError(
            f"device=cuda: torch {torch.__version__} finds no CUDA device; {fix}, or set device=cpu"
        )
    if device is Device.mps and not torch.backends.mps.is_available():
        raise ValueError(f"device=mps: torch {torch.__version__} finds no Metal device; set device=cpu")
    return torch.device(device.value), "asked for"


def choose_precision(device: torch.device, format: Format) -> tuple[torch.dtype, str]:
    """The arithmetic of the matrix products, and why, in words; `auto` is BF16 where the hardware has it.

    Of `fp8` it is that of the products which the paper leaves in high precision, chosen as with `auto`.
    """
    hardware, reason = _bf16_hardware(device)
    if format is Format.fp32:
        return torch.float32, "asked for"
    if format is Format.bf16:
        return torch.bfloat16, "asked for" if hardware else f"asked for, and slow: {reason}"
    return torch.bfloat16 if hardware else torch.float32, reason


def product_dtype(device: torch.device, precision: PrecisionConfig, dtype: torch.dtype) -> torch.dtype:
    """What most matrix products run in, whose peak is the one to count against.

    FP8 runs count against the FP8 peak, twice the BF16 peak of which DeepSeek's own 38.9% are
    (arXiv:2505.09343); emulated ones against that of FP32. `dtype` is what `choose_precision` gave.
    """
    if precision.format is not Format.fp8:
        return dtype
    on_tensor_cores = precision.backend is not Backend.emulated and device.type == "cuda"
    return torch.float8_e4m3fn if on_tensor_cores else torch.float32


def matmul_peak(device: torch.device, dtype: torch.dtype) -> Peak:
    """Dense matmul peak of `device` in `dtype`: of a GPU from its data sheet, of a CPU measured in 0.5 s.

    FP32 on a GPU is TF32 where torch is allowed to use it (`torch.set_float32_matmul_precision`).
    """
    if device.type == "cpu":
        return _measured_peak(dtype)
    if device.type == "cuda":
        arithmetic = _cuda_arithmetic(dtype)
        return listed_peak(device_name(device), arithmetic)
    return Peak(None, "unknown device")


def listed_peak(name: str, arithmetic: str) -> Peak:
    """Dense peak in `bf16`, `fp8`, `tf32` or `fp32` of the GPU that the driver calls `name`, if it is listed.

    The whole name must match: a slice of a GPU (MIG) or its laptop version has another peak.
    """
    for gpu in gpus():
        if re.fullmatch(gpu.driver_name, name.removeprefix("NVIDIA ")):
            tflops: float | None = getattr(gpu, arithmetic)
            if tflops is None:
                return Peak(None, f"no {arithmetic.upper()} peak is known for {name}")
            return Peak(tflops * 1e12, f"{arithmetic.upper()}, NVIDIA {gpu.source}, without sparsity")
    return Peak(None, f"unknown device {name}")


def device_name(device: torch.device) -> str:
    """Name of the GPU as the driver has it, or of the CPU as the system has it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    names = re.findall(r"^model name\s*:\s*(.+)$", _cpuinfo(), re.MULTILINE)
    return names[0].strip() if names else platform.processor() or platform.machine()


def total_memory(device: torch.device) -> int | None:
    """Bytes of the GPU's own memory, or of the machine's; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None


def _bf16_hardware(device: torch.device) -> tuple[bool, str]:
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        has = "has" if major >= 8 else "has no"
        return major >= 8, f"compute capability {major}.{minor} {has} BF16 tensor cores"
    if device.type == "cpu":
        # Read from the kernel: torch's own helpers are private, and know x86 only.
        flags = set(re.findall(r"\b(amx_bf16|avx512_bf16|bf16)\b", _cpuinfo()))
        if flags:
            return True, f"this CPU has BF16 instructions ({', '.join(sorted(flags))})"
        return (
            False,
            "this CPU has no BF16 instructions (avx512_bf16, AMX or Arm's bf16) that the system names",
        )
    return False, f"BF16 on {device.type} is untested"


def _cpuinfo() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def _cuda_arithmetic(dtype: torch.dtype) -> str:
    if dtype is torch.float32:
        return "fp32" if torch.get_float32_matmul_precision() == "highest" else "tf32"
    return {torch.bfloat16: "bf16", torch.float8_e4m3fn: "fp8"}[dtype]


def _measured_peak(dtype: torch.dtype) -> Peak:
    """The fastest of several square products, as large as the time allows.

    Not their median: other work on the machine would lower it, and a low peak flatters MFU.
    """
    emulated = dtype is torch.bfloat16 and not _bf16_hardware(torch.device("cpu"))[0]
    size = 256 if emulated else 1024
    while size < 4096 and 8 * _matmul_seconds(size, dtype, 0.0) < MEASURE_SECONDS / 5:
        size *= 2
    seconds = _matmul_seconds(size, dtype, MEASURE_SECONDS)
    threads = torch.get_num_threads()
    kind = {torch.float32: "FP32", torch.bfloat16: "BF16"}[dtype]
    source = f"measured: {size}x{size} {kind} matmuls, {threads} thread{'s' if threads > 1 else ''}"
    return Peak(2 * size**3 / seconds, source)


def _matmul_seconds(size: int, dtype: torch.dtype, budget: float) -> float:
    """Fastest of the products of two matrices of `size` that fit into `budget` seconds, three at least."""
    a, b = torch.randn(2, size, size).to(dtype)
    out = torch.empty(size, size, dtype=dtype)
    timings: list[float] = []
    while len(timings) < 3 or sum(timings) < budget:
        begin = time.perf_counter()
        torch.mm(a, b, out=out)
        timings.append(time.perf_counter() - begin)
    return min(timings)
