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

from deepseek_mini.config import Device, Format

MEASURE_SECONDS = 0.3


@dataclass(frozen=True, slots=True)
class Peak:
    """Dense matmul peak of one device in one arithmetic."""

    flops_per_second: float | None
    """None where it is not known."""
    source: str
    """Where the figure is from, in words."""


@dataclass(frozen=True, slots=True)
class _Gpu:
    """Dense TFLOPS of an NVIDIA GPU, accumulating in FP32; None where there is none or none is known."""

    name: str
    """Regular expression for the whole name that the driver gives, without its `NVIDIA `."""
    bf16: float | None
    fp8: float | None
    tf32: float | None
    fp32: float | None
    source: str


_GPUS = (
    _Gpu(r"GB200", 2500, 5000, 1250, 80, "GB200 NVL72 data sheet"),
    _Gpu(r"GB300", 2500, 5000, 1250, None, "GB300 NVL72 data sheet"),
    _Gpu(r"B[23]00( SXM6 AC)?", 2250, 4500, 1125, 75, "HGX B200 and B300 data sheets"),
    _Gpu(r"H[18]00 PCIe", 756.5, 1513, 378, 51.2, "H100 data sheet"),
    _Gpu(r"H[12]00 NVL", 835.5, 1670.5, 417.5, 60, "H100 NVL and H200 NVL data sheets"),
    _Gpu(r"(H[128]00|GH200)( \d+GB?( HBM3e?)?)?", 989.4, 1978.9, 494.7, 66.9, "H100 SXM data sheet"),
    _Gpu(r"H20", 148, 296, 74, 44, "H20 data sheet"),
    _Gpu(r"A[18]00(-SXM4|-PCIE)?[ -]\d+GB( PCIe)?", 312, None, 156, 19.5, "A100 data sheet"),
    _Gpu(r"A30", 165, None, 82, 10.3, "A30 data sheet"),
    _Gpu(r"A40", 149.7, None, 74.8, 37.4, "A40 data sheet"),
    _Gpu(r"A10", 125, None, 62.5, 31.2, "A10 data sheet"),
    _Gpu(r"L40S", 362, 733, 183, 91.6, "L40S data sheet"),
    _Gpu(r"L4", 121, 242.5, 60, 30.3, "L4 data sheet"),
    _Gpu(r"RTX 6000 Ada Generation", 364.2, 728.5, 182.1, 91.1, "Ada architecture whitepaper"),
    _Gpu(r"RTX A6000", 154.8, None, 77.4, 38.7, "GA102 whitepaper"),
    _Gpu(r"GeForce RTX 5090", 209.5, 419, 104.8, 104.8, "RTX Blackwell whitepaper"),
    _Gpu(r"GeForce RTX 4090", 165.2, 330.3, 82.6, 82.6, "Ada architecture whitepaper"),
    _Gpu(r"GeForce RTX 3090", 71, None, 35.6, 35.6, "GA102 whitepaper"),
    _Gpu(r"Tesla V100-SXM2-\d+GB", None, None, None, 15.7, "V100 data sheet"),
    _Gpu(r"Tesla T4", None, None, None, 8.1, "T4 data sheet"),
)


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
    """The arithmetic of the matrix products, and why, in words; `auto` is BF16 where the hardware has it."""
    hardware, reason = _bf16_hardware(device)
    if format is Format.fp32:
        return torch.float32, "asked for"
    if format is Format.bf16:
        return torch.bfloat16, "asked for" if hardware else f"asked for, and slow: {reason}"
    return torch.bfloat16 if hardware else torch.float32, reason


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
    for gpu in _GPUS:
        if re.fullmatch(gpu.name, name.removeprefix("NVIDIA ")):
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
