import logging
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses import FakeTensorMode

from deepseek_mini_kernels import backend
from deepseek_mini_kernels.backend import choose
from deepseek_mini_kernels.quantize import quantize_activation

CPU = torch.zeros(2, 128)


@pytest.fixture
def fake_gpu(monkeypatch: pytest.MonkeyPatch):
    """Makes a tensor that says it is on a GPU of a given compute capability."""
    backend._announce.cache_clear()
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100")
    monkeypatch.setattr(backend, "has_triton", lambda: True)

    def make(capability: tuple[int, int]) -> torch.Tensor:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        with FakeTensorMode():
            return torch.empty(2, 128, device="cuda")

    yield make
    backend._announce.cache_clear()


def test_cpu_tensors_run_naive_and_a_log_line_says_so(caplog):
    backend._announce.cache_clear()
    with caplog.at_level(logging.INFO):
        assert choose(CPU) == choose(CPU) == "naive"
    assert [r.getMessage() for r in caplog.records] == [
        f"kernels: naive backend ({backend.why_not_triton(CPU.device) or 'the tensors are on the CPU'})"
    ]
    assert caplog.records[0].levelno == logging.INFO


def test_hopper_runs_triton(fake_gpu, caplog):
    with caplog.at_level(logging.INFO):
        assert choose(fake_gpu((9, 0))) == "triton"
    assert "triton backend" in caplog.text


def test_older_gpus_run_naive_with_a_warning_and_refuse_triton(fake_gpu, caplog):
    x = fake_gpu((8, 0))
    assert choose(x) == "naive"
    assert caplog.records[0].levelno == logging.WARNING
    reason = r"FP8 needs Hopper \(compute capability 9.0\) or later, NVIDIA A100 has 8.0"
    assert "NVIDIA A100 has 8.0" in caplog.text
    with pytest.raises(ValueError, match=f"backend=triton cannot run: {reason}; use backend=naive or auto"):
        choose(x, "triton")


def test_gpus_whose_shared_memory_is_too_small_run_naive_with_a_warning(fake_gpu, caplog):
    assert choose(fake_gpu((10, 0))) == "triton"
    assert choose(fake_gpu((12, 0))) == "naive"
    assert "products take 128 KiB of shared memory, and NVIDIA A100 has 99 for a block" in caplog.text


def test_a_gpu_without_triton_runs_naive_with_a_warning(fake_gpu, monkeypatch, caplog):
    x = fake_gpu((9, 0))
    monkeypatch.setattr(backend, "has_triton", lambda: False)
    assert choose(x) == "naive"
    assert "triton is not installed (pip install triton)" in caplog.text


def test_unknown_backends_are_refused():
    with pytest.raises(ValueError, match="backend='cuda' is unknown; there are auto, naive and triton"):
        quantize_activation(CPU, backend="cuda")


def test_triton_on_the_cpu_is_refused_unless_it_is_simulated(monkeypatch):
    monkeypatch.setattr(backend, "has_triton", lambda: True)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(ValueError, match="the tensors are on the CPU"):
        choose(CPU, "triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert choose(CPU, "triton") == "triton"


@pytest.mark.parametrize(("capability", "interprets"), [((8, 9), "1"), ((9, 0), "0"), ((12, 0), "1")])
def test_tests_ask_a_gpu_where_it_runs_the_kernels_and_simulate_elsewhere(
    monkeypatch, capability, interprets
):
    monkeypatch.delenv("TRITON_INTERPRET")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    runpy.run_path(str(Path(__file__).parents[1] / "conftest.py"))
    assert os.environ["TRITON_INTERPRET"] == interprets


def test_every_op_imports_and_runs_without_triton():
    code = """
import sys
sys.modules["triton"] = None
import torch
from deepseek_mini_kernels.quantize import quantize_activation, quantize_weight
from deepseek_mini_kernels.matmul import block_scaled_matmul
from deepseek_mini_kernels.grouped_matmul import grouped_matmul
from deepseek_mini_kernels.swiglu import swiglu_quantize
from deepseek_mini_kernels.router import Rule, route
from deepseek_mini_kernels.configs import PRODUCTION
x = torch.randn(4, 130)
y = block_scaled_matmul(*quantize_activation(x), *quantize_weight(x))
y = grouped_matmul(*quantize_activation(x), *quantize_weight(x[None]), torch.tensor([4]))
swiglu_quantize(x, x), route(x, None, Rule(2))
try:
    quantize_activation(x, backend="triton")
except ValueError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "backend=triton cannot run" in result.stdout
