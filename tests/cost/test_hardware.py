import pytest
import torch

from deepseek_mini.config import Device, Format
from deepseek_mini.cost import hardware
from deepseek_mini.cost.devices import gpus
from deepseek_mini.cost.hardware import (
    choose_device,
    choose_precision,
    device_name,
    listed_peak,
    matmul_peak,
    total_memory,
)

CPU = torch.device("cpu")
CUDA = torch.device("cuda")


@pytest.mark.parametrize(
    ("name", "bf16", "fp8"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4e12, 1978.9e12),
        ("NVIDIA H800", 989.4e12, 1978.9e12),
        ("NVIDIA H200", 989.4e12, 1978.9e12),
        ("NVIDIA GH200 480GB", 989.4e12, 1978.9e12),
        ("NVIDIA H100 PCIe", 756.5e12, 1513e12),
        ("NVIDIA H200 NVL", 835.5e12, 1670.5e12),
        ("NVIDIA A100-SXM4-80GB", 312e12, None),
        ("NVIDIA A100 80GB PCIe", 312e12, None),
        ("NVIDIA B200", 2250e12, 4500e12),
        ("NVIDIA GB200", 2500e12, 5000e12),
        ("NVIDIA GB300", 2500e12, 5000e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12, 330.3e12),
        ("NVIDIA L40S", 362e12, 733e12),
    ],
)
def test_listed_peaks_are_dense(name: str, bf16: float, fp8: float | None) -> None:
    assert listed_peak(name, "bf16").flops_per_second == pytest.approx(bf16)
    assert listed_peak(name, "fp8").flops_per_second == (fp8 and pytest.approx(fp8))


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA A10G",
        "AMD Instinct MI300X",
    ],
)
def test_an_unlisted_device_has_no_peak(name: str) -> None:
    peak = listed_peak(name, "bf16")
    assert peak.flops_per_second is None
    assert peak.source == f"unknown device {name}"


def test_no_listed_peak_is_a_sparse_one() -> None:
    """BF16 is half of FP8 and twice TF32, within the rounding of the data sheets."""
    for gpu in gpus():
        if gpu.bf16 and gpu.fp8:
            assert gpu.fp8 / gpu.bf16 == pytest.approx(2, rel=0.02), gpu.name
        if gpu.bf16 and gpu.tf32:
            assert gpu.bf16 / gpu.tf32 == pytest.approx(2, rel=0.02), gpu.name


def test_cpu_peak_is_measured_and_says_so() -> None:
    peak = matmul_peak(CPU, torch.float32)
    assert peak.flops_per_second is not None
    assert 1e8 < peak.flops_per_second < 1e15
    threads = torch.get_num_threads()
    assert peak.source.startswith("measured: ")
    assert f"FP32 matmuls, {threads} thread" in peak.source


def test_fp32_on_a_gpu_is_tf32_only_where_torch_may_use_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "device_name", lambda device: "NVIDIA H100 80GB HBM3")
    assert matmul_peak(CUDA, torch.float32).flops_per_second == pytest.approx(66.9e12)
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    assert matmul_peak(CUDA, torch.float32).flops_per_second == pytest.approx(494.7e12)


def test_unknown_kind_of_device_has_no_peak() -> None:
    assert matmul_peak(torch.device("mps"), torch.float32).flops_per_second is None


@pytest.mark.parametrize(
    ("flags", "dtype"),
    [
        ("flags\t\t: fma avx2 avx512f", torch.float32),
        ("flags\t\t: fma avx512f avx512_bf16", torch.bfloat16),
        ("flags\t\t: avx512f amx_bf16 amx_tile", torch.bfloat16),
        ("Features\t: fp asimd i8mm bf16", torch.bfloat16),
        ("", torch.float32),
    ],
)
def test_auto_is_bf16_on_cpus_that_have_it(
    flags: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "_cpuinfo", lambda: flags)
    assert choose_precision(CPU, Format.auto)[0] is dtype
    assert choose_precision(CPU, Format.fp32) == (torch.float32, "asked for")
    asked, reason = choose_precision(CPU, Format.bf16)
    assert asked is torch.bfloat16
    assert ("slow" in reason) == (dtype is torch.float32)


@pytest.mark.parametrize(("capability", "dtype"), [((7, 5), torch.float32), ((8, 0), torch.bfloat16)])
def test_auto_is_bf16_from_ampere_on(
    capability: tuple[int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    chosen, reason = choose_precision(CUDA, Format.auto)
    assert chosen is dtype
    assert f"{capability[0]}.{capability[1]}" in reason


def test_auto_is_fp32_on_mps() -> None:
    assert choose_precision(torch.device("mps"), Format.auto)[0] is torch.float32


@pytest.mark.parametrize("name", ["cuda", "mps"])
def test_an_absent_device_is_refused_with_the_fix(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ValueError, match=f"device={name}.*set device=cpu"):
        choose_device(Device(name))
    device, reason = choose_device(Device.auto)
    assert device == CPU
    assert "no CUDA device" in reason


def test_auto_takes_a_cuda_device_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device(Device.auto)[0] == CUDA
    assert choose_device(Device.cpu) == (CPU, "asked for")


def test_the_cpu_has_a_name_and_memory() -> None:
    assert device_name(CPU)
    memory = total_memory(CPU)
    assert memory is None or memory > 2**28
