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


def test_names_are_unique() -> None:
    assert len({gpu.name.lower() for gpu in gpus()}) == len(gpus())
