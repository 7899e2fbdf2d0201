"""The published trace as a profile, and files that are not one."""

import json
from pathlib import Path
from typing import Any

import pytest

from deepseek_mini.config import ModelConfig
from deepseek_mini.cost.layer_profile import PIECES, REFERENCE, read_layer_profile
from deepseek_mini.cost.shape import shape_of

TRACE = read_layer_profile()


def test_the_six_published_figures() -> None:
    milliseconds = {piece: round(1e3 * sum(parts.values()), 2) for piece, parts in TRACE.seconds.items()}
    assert milliseconds == {
        "attention_forward": 4.37,
        "attention_input_grad": 9.34,
        "attention_weight_grad": 2.39,
        "mlp_forward": 4.60,
        "mlp_input_grad": 5.31,
        "mlp_weight_grad": 6.38,
    }


def test_it_says_that_it_is_somebody_elses() -> None:
    assert TRACE.kind == "reference"
    assert "not measured on this machine" in TRACE.label
    assert "profile-data" in TRACE.source


def test_a_pair_of_the_trace_runs_at_508_tflops() -> None:
    """51.4% of the BF16 peak; the layer's share of V3's FLOPs, attention core causal."""
    shape = shape_of(ModelConfig())
    weights = shape.attention_weights + shape.shared_weights + shape.top_k * shape.expert_weights
    flops = 6 * weights + 6 * shape.n_heads * (shape.key_width + shape.value_width) * 4096 / 2
    assert TRACE.pair_seconds is not None
    assert flops * 4096 / TRACE.pair_seconds == pytest.approx(508e12, rel=2e-3)


@pytest.mark.parametrize(
    ("piece", "attention", "tflops"),
    [
        ("mlp_forward", False, 985),
        ("mlp_input_grad", False, 1015),
        ("mlp_weight_grad", False, 560),
        ("attention_forward", True, 891),
        ("attention_input_grad", True, 650),
        ("attention_weight_grad", True, 642),
    ],
)
def test_rates_of_the_products(piece: str, attention: bool, tflops: float) -> None:
    shape = shape_of(ModelConfig())
    mlp = shape.shared_weights + shape.top_k * shape.expert_weights
    flops = 2 * (shape.attention_weights if attention else mlp) * 4096
    assert flops / TRACE.seconds[piece]["gemm"] == pytest.approx(tflops * 1e12, rel=2e-3)


def damaged(tmp_path: Path, **changes: Any) -> Path:
    path = tmp_path / "profile.json"
    content = {**json.loads(REFERENCE.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in content.items() if value != "absent"}))
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "format 2 is not 1"),
        ({"tokens": 0}, "must be positive"),
        ({"tokens": "absent"}, "tokens"),
        ({"kind": "guess"}, "measured or reference"),
        ({"milliseconds": {}}, PIECES[0]),
        ({"overlapped_pair_milliseconds": -1}, "overlapped_pair_milliseconds"),
    ],
)
def test_another_file_is_refused_by_name(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = damaged(tmp_path, **changes)
    with pytest.raises(ValueError, match=message) as error:
        read_layer_profile(path)
    assert str(path) in str(error.value)


def test_negative_milliseconds_are_refused(tmp_path: Path) -> None:
    pieces = json.loads(REFERENCE.read_text())["milliseconds"]
    pieces["mlp_forward"]["gemm"] = -1.0
    with pytest.raises(ValueError, match="milliseconds must be positive"):
        read_layer_profile(damaged(tmp_path, milliseconds=pieces))


@pytest.mark.parametrize("text", ["", "[]", "{"])
def test_no_json_object_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "profile.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="JSON"):
        read_layer_profile(path)
