"""Devices by any of their names."""

import pytest

from deepseek_mini.cost.devices import bf16_peak, find_gpu, gpus


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("h800", "H800"),
        ("H100", "H100"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("A100-80", "A100"),
        ("A100-40", "A100"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("DGX-GB200", "GB200"),
        ("gh200", "H200"),
        ("H100 SXM5 80GB", "H100"),
        ("H100-SXM", "H100"),
        ("H100 PCIe", "H100 PCIe"),
        ("A100 (40GB)", "A100"),
        ("A100-80G", "A100"),
        ("A800-80", "A800"),
        ("NVIDIA A800-SXM4-80GB", "A800"),
        ("RTX 4090", "RTX 4090"),
    ],
)
def test_names_that_find_a_device(name: str, found: str) -> None:
    assert find_gpu(name).name == found


def test_an_unknown_device_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown device 'B900'; known: .*H800"):
        find_gpu("B900")


def test_a_device_without_a_bf16_peak_has_no_mfu() -> None:
    with pytest.raises(ValueError, match="no BF16"):
        bf16_peak(find_gpu("V100"))


def test_every_training_gpu_of_the_issue_has_peaks_memory_links_and_a_source() -> None:
    for name in ("A100", "H100", "H800", "H200", "B200", "GB200", "GB300"):
        gpu = find_gpu(name)
        assert gpu.source
        for value in (gpu.bf16, gpu.memory_gb, gpu.memory_gbps, gpu.nvlink_gbps, gpu.network_gbps, gpu.watts):
            assert value
        assert gpu.fp8 or name == "A100"


def test_h800_is_an_h100_with_narrower_links() -> None:
    h100, h800 = find_gpu("H100"), find_gpu("H800")
    assert (h100.bf16, h100.fp8, h100.memory_gbps) == (h800.bf16, h800.fp8, h800.memory_gbps)
    assert (h100.nvlink_gbps, h800.nvlink_gbps) == (900, 400)


def test_a800_is_an_a100_with_narrower_links() -> None:
    a100, a800 = find_gpu("A100"), find_gpu("A800")
    assert (a100.bf16, a100.memory_gbps) == (a800.bf16, a800.memory_gbps)
    assert (a100.nvlink_gbps, a800.nvlink_gbps) == (600, 400)


@pytest.mark.parametrize("name", ["NVIDIA A100-SXM4-40GB MIG 1g.5gb", "NVIDIA GeForce RTX 4090 Laptop GPU"])
def test_a_part_or_another_make_of_a_device_is_not_the_device(name: str) -> None:
    with pytest.raises(ValueError, match="unknown device"):
        find_gpu(name)


def test_names_are_unique() -> None:
    assert len({gpu.name.lower() for gpu in gpus()}) == len(gpus())
