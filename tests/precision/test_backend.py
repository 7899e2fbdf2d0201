"""Which backend runs, what is announced, and what is refused with a reason."""

import re
from collections.abc import Callable

import pytest
import torch

from deepseek_mini.compose import ConfigError, load_config
from deepseek_mini.config import Accumulation, Backend, Format, Granularity, PrecisionConfig, Scales
from deepseek_mini.cost.hardware import product_dtype
from deepseek_mini.precision import transformer_engine
from deepseek_mini.precision.backend import choose_backend
from deepseek_mini_kernels import backend as kernel_backend

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
NO_TE = "Transformer Engine is not there"


@pytest.fixture
def machine(monkeypatch) -> Callable:
    """Pretend to be a GPU: its compute capability, whether Transformer Engine loads, whether triton does."""

    def be(capability: tuple[int, int], te: bool, triton: bool = True) -> None:
        monkeypatch.setattr(transformer_engine, "why_not_te", lambda device: None if te else NO_TE)
        monkeypatch.setattr(kernel_backend, "has_triton", lambda: triton)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A GPU")

    return be


def chosen(device: torch.device, **keys) -> tuple[Backend, list[str]]:
    said: list[str] = []
    return choose_backend(PrecisionConfig(Format.fp8, **keys), device, said.append).backend, said


def test_auto_takes_transformer_engine_where_it_runs_and_has_nothing_to_say(machine):
    machine((9, 0), te=True)
    assert chosen(CUDA) == (Backend.te, [])


def test_auto_falls_back_to_triton_and_says_why(machine):
    machine((9, 0), te=False)
    assert chosen(CUDA) == (Backend.triton, [f"fp8: not by te: {NO_TE}"])


@pytest.mark.parametrize(
    ("capability", "triton", "reason"),
    [
        ((8, 0), True, "FP8 needs Hopper (compute capability 9.0) or later, A GPU has 8.0"),
        ((9, 0), False, "triton is not installed (pip install triton)"),
    ],
)
def test_auto_falls_back_to_the_emulation_and_says_why(machine, capability, triton, reason):
    machine(capability, te=False, triton=triton)
    assert chosen(CUDA) == (Backend.emulated, [f"fp8: not by te: {NO_TE}", f"fp8: not by triton: {reason}"])


def test_auto_on_a_cpu_is_the_emulation_also_where_triton_could_be_simulated(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    backend, said = chosen(CPU)
    assert backend is Backend.emulated
    assert [line.partition(": ")[0] for line in said] == ["fp8", "fp8"]
    assert "simulated" in said[1]


@pytest.mark.parametrize("name", [Backend.te, Backend.triton])
def test_a_backend_that_is_asked_for_and_cannot_run_is_refused(machine, monkeypatch, name):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    machine((8, 0), te=False)
    for device in (CPU, CUDA):
        with pytest.raises(ValueError, match=f"precision.backend={name}: .*precision.backend=auto"):
            chosen(device, backend=name)


def test_a_study_is_emulated_even_where_faster_backends_run(machine):
    machine((9, 0), te=True)
    backend, said = chosen(CUDA, granularity=Granularity.tensor)
    assert backend is Backend.emulated
    assert said == [
        f"fp8: not by {name}: precision.granularity=tensor is for studies, and emulated"
        for name in ("te", "triton")
    ]


def test_other_formats_choose_nothing():
    precision = PrecisionConfig(Format.bf16)
    assert choose_backend(precision, CPU, pytest.fail) is precision


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"backend": Backend.te}, "precision.backend=te says how FP8 is done, and precision.format=auto"),
        (
            {"format": Format.bf16, "scales": Scales.pow2},
            "precision.scales=pow2.*precision.format=bf16.*precision=fp8",
        ),
        ({"accumulation": Accumulation.hopper}, "precision.accumulation=hopper"),
        (
            {"format": Format.fp8, "backend": Backend.triton, "granularity": Granularity.tensor},
            "precision.granularity=tensor is emulated; set precision.backend=emulated",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(keys, message):
    with pytest.raises(ValueError, match=message):
        PrecisionConfig(**keys)


def test_contradictions_on_the_command_line_are_the_users_to_mend():
    with pytest.raises(ConfigError, match=re.escape("precision.scales=pow2")):
        load_config(["model=tiny", "precision=bf16", "precision.scales=pow2"])
    with pytest.raises(ConfigError, match=r"precision\.backend takes one of auto, te, triton, emulated"):
        load_config(["model=tiny", "precision=fp8", "precision.backend=cuda"])


@pytest.mark.parametrize(
    ("device", "backend", "wanted"),
    [
        (CUDA, Backend.te, torch.float8_e4m3fn),
        (CUDA, Backend.triton, torch.float8_e4m3fn),
        (CUDA, Backend.emulated, torch.float32),
        (CPU, Backend.triton, torch.float32),
    ],
)
def test_fp8_runs_count_against_the_peak_of_what_multiplies(device, backend, wanted):
    assert product_dtype(device, PrecisionConfig(Format.fp8, backend), torch.bfloat16) is wanted
    assert product_dtype(device, PrecisionConfig(Format.bf16), torch.bfloat16) is torch.bfloat16
