"""The adapter against the pinned release of Transformer Engine: its Python is real, its C++ is stubbed."""

import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from deepseek_mini.precision import transformer_engine
from deepseek_mini.precision.transformer_engine import why_not_te
from deepseek_mini_kernels.formats import SMALLEST_AMAX, SMALLEST_GRADIENT

RELEASE = "2.20.2"
SCRIPT = Path(__file__).resolve().parents[1] / "transformer_engine_facts.py"
CUDA = torch.device("cuda")
needs_te = pytest.mark.skipif(
    importlib.util.find_spec("transformer_engine") is None, reason="transformer-engine is not installed"
)


@pytest.fixture(scope="module")
def facts() -> dict[str, Any]:
    """In a process of its own, so that no stub reaches other tests."""
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    result = subprocess.run([sys.executable, SCRIPT], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@needs_te
def test_the_release_is_the_pinned_one(facts):
    assert facts["release"] == RELEASE


@needs_te
def test_linears_compute_what_they_replace_whatever_the_number_of_rows(facts):
    linear = facts["linear"]
    assert max(error for errors in linear["errors"] for error in errors.values()) < 1e-6
    assert linear["rows"] == [16, 16, 16, 80]


@needs_te
def test_experts_compute_what_they_replace_with_ragged_and_empty_groups(facts):
    experts = facts["experts"]
    for errors in experts["errors"]:
        assert set(errors) == {"result", "input 0", "input 1", "w1", "w2", "w3"}
        assert max(errors.values()) < 1e-6


@needs_te
def test_groups_are_padded_with_zero_rows_and_their_sizes_come_on_the_host(facts):
    experts = facts["experts"]
    assert experts["splits"][0] == [[80, 0, 16, 144]] * 3
    assert experts["splits"][1] == [[0, 0, 16]] * 3
    assert all(map(all, experts["padding_is_zero"]))
    assert experts["split_kinds"] == ["torch.int64 cpu"]


@needs_te
def test_parameters_and_checkpoints_are_those_of_the_modules_replaced(facts):
    for kind in ("linear", "experts"):
        assert facts[kind]["own_parameters"], kind
        assert facts[kind]["modules"] == 1, kind
    assert facts["linear"]["copies"]
    assert facts["experts"]["names"] == ["w1", "w2", "w3"]


@needs_te
def test_modules_build_on_meta(facts):
    assert facts["meta"] == {
        "linear": {"weight": [[48, 32], "meta"]},
        "experts": {
            "w1": [[3, 48, 32], "meta"],
            "w2": [[3, 32, 48], "meta"],
            "w3": [[3, 48, 32], "meta"],
        },
    }


@needs_te
@pytest.mark.parametrize("scales", ["fp32", "pow2"])
def test_the_recipe_is_that_of_the_report(facts, scales):
    recipe, pow2 = facts["recipes"][scales], scales == "pow2"
    assert recipe["format"] == "E4M3"
    assert recipe["promoted"] == [True] * 3
    assert not recipe["fp8_attention"]
    assert recipe["backward_override"] is None
    tile, block = (["kFloat8E4M3", dimensions, pow2, SMALLEST_AMAX] for dimensions in (1, 2))
    gradient = ["kFloat8E4M3", 1, pow2, SMALLEST_GRADIENT]
    assert recipe["quantizers"] == {"scaling_fwd": [tile, block, tile], "scaling_bwd": [gradient, gradient]}


@needs_te
def test_autocast_surrounds_forward_and_not_backward(facts):
    assert facts["in_autocast"] == {"forward": [True], "backward": [False], "after": False}


@needs_te
def test_quantised_weights_are_never_cached(facts):
    assert facts["cached"] == []


@needs_te
def test_the_benchmark_times_a_quantiser_with_the_rule_of_our_kernels(facts):
    assert facts["benchmark"] == {
        "dtype": "kFloat8E4M3",
        "rowwise_usage": True,
        "columnwise_usage": True,
        "block_scaling_dim": 2,
        "force_pow_2_scales": False,
        "amax_epsilon": SMALLEST_AMAX,
    }


@needs_te
def test_our_padding_meets_the_rules_that_transformer_engine_checks(facts):
    rules = facts["rules"]
    assert rules["takes"] == {"(16, 32)": True, "(5, 32)": False, "(16, 40)": False}
    assert rules["multiple"] % rules["group_multiple"] == 0


@needs_te
def test_features_that_are_no_multiples_of_16_are_refused_before_it_is_asked():
    with pytest.raises(ValueError, match=r"needs multiples of 16, and a weight is 40 x 32; .*backend=triton"):
        transformer_engine.require_multiples(nn.Linear(32, 40, bias=False).weight)
    with pytest.raises(ValueError, match="a weight is 48 x 24"):
        transformer_engine.require_multiples(torch.empty(3, 48, 24))


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A machine on which everything is in place; each test takes one thing away."""
    transformer_engine._why_not_import.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(importlib.metadata, "version", lambda name: RELEASE)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    package = ModuleType("transformer_engine")
    monkeypatch.setitem(sys.modules, "transformer_engine", package)
    monkeypatch.setitem(sys.modules, "transformer_engine.pytorch", ModuleType("transformer_engine.pytorch"))
    yield package
    transformer_engine._why_not_import.cache_clear()


def test_hopper_with_a_working_installation_has_no_obstacle(hopper):
    assert why_not_te(CUDA) is None


def test_a_missing_installation_is_named(hopper, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert why_not_te(CUDA) == "Transformer Engine is not installed (docs/gpu.md tells how)"


def test_a_machine_without_cuda_is_named_and_nothing_is_imported(hopper, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformer_engine.pytorch", None)
    assert why_not_te(torch.device("cpu")) == "Transformer Engine needs CUDA, and the device is cpu"


@pytest.mark.parametrize(
    ("capability", "reason"),
    [((8, 9), "FP8 needs Hopper .* NVIDIA H100 has 8.9"), ((10, 0), "blocks of 128 on Hopper only")],
)
def test_gpus_that_are_not_hopper_are_named(hopper, monkeypatch, capability, reason):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert re.search(reason, why_not_te(CUDA) or "")


@pytest.mark.parametrize("cuda", ["12.8", None])
def test_an_older_cuda_is_named(hopper, monkeypatch, cuda):
    monkeypatch.setattr(torch.version, "cuda", cuda)
    assert why_not_te(CUDA) == f"Transformer Engine needs CUDA 12.9 for blocks of 128, and torch has {cuda}"


def test_an_older_release_is_named(hopper, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.8.0+abc")
    assert why_not_te(CUDA) == "Transformer Engine must be 2.20 or later, and is 2.8.0+abc"


def test_an_installation_that_does_not_load_is_named_in_one_line(hopper, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformer_engine.pytorch", None)
    reason = why_not_te(CUDA)
    assert reason is not None
    assert reason.startswith("Transformer Engine does not load: ModuleNotFoundError: import of transformer_e")
    assert "\n" not in reason


def test_the_wheel_alone_is_no_installation(hopper, monkeypatch):
    """What the tests install has no compiled part, and says so at length."""

    class Empty(ModuleType):
        def __getattr__(self, name: str):
            raise RuntimeError("Found empty meta package\nand more")

    monkeypatch.delitem(sys.modules, "transformer_engine.pytorch")
    monkeypatch.setitem(sys.modules, "transformer_engine", Empty("transformer_engine"))
    assert why_not_te(CUDA) == "Transformer Engine does not load: RuntimeError: Found empty meta package"
