"""Other families' shapes, and FLOPs by component, against sums written out here."""

import pytest

from deepseek_mini.config import Attention, ModelConfig
from deepseek_mini.cost.flops import flops_by_component, flops_per_token
from deepseek_mini.cost.shape import Shape, shape_of, shape_of_row
from deepseek_mini.cost.tables import read_table

V3 = ModelConfig()
LLAMA_405B = {
    "layers": "126", "hidden": "16384", "heads": "128", "kv_heads": "8", "head_dim": "128", "ffn": "53248",
    "vocab": "128256",
}  # fmt: skip


def test_components_of_v3_are_the_published_shares() -> None:
    """Routed 49.1%, MLA projections 27.4, attention core 12.3, shared 6.1, dense 2.9, head 2.2."""
    flops = flops_by_component(shape_of(V3), 4096)
    total = flops_per_token(V3, 4096)
    shares = {name: round(100 * value / total, 1) for name, value in flops.items()}
    assert shares["routed_experts"] == 49.1
    assert shares["attention_projections"] == 27.4
    assert shares["attention_core"] == 12.3
    assert shares["shared_experts"] == 6.1
    assert shares["dense"] == 2.9
    assert shares["head"] == 2.2
    assert sum(v for name, v in flops.items() if name not in ("gate", "mtp", "mtp_gate")) == total


def test_grouped_query_dense_model_by_hand() -> None:
    shape = shape_of_row(LLAMA_405B)
    h, kv, ffn = 16384, 8 * 128, 53248
    weights = 126 * (2 * h * h + 2 * h * kv + 3 * h * ffn) + 128256 * h
    core = 126 * 2 * 128 * (128 + 128) * 4096 / 2
    assert flops_per_token(shape, 4096) == 3 * (2 * weights + core)
    assert flops_per_token(shape, 4096) == pytest.approx(2473e9, rel=5e-4)


def test_multi_head_is_grouped_query_with_all_heads() -> None:
    row = {**LLAMA_405B, "kv_heads": ""}
    assert shape_of_row(row).n_kv_heads == 128
    assert shape_of_row(row) == shape_of_row({**row, "kv_heads": "128"})


def test_baseline_attentions_of_a_config_differ_in_key_value_heads_only() -> None:
    shapes = {kind: shape_of(ModelConfig(attention=kind)) for kind in Attention}
    assert (shapes["mha"].n_kv_heads, shapes["gqa"].n_kv_heads, shapes["mqa"].n_kv_heads) == (128, 8, 1)
    assert shapes["mla"].attention_weights == 187_105_280
    assert shapes["mha"].attention_weights == 4 * 7168 * 128 * 128


def test_a_window_is_the_exact_mean_of_keys() -> None:
    """Position t of s sees min(t, w) keys; their mean, in the half-matrix convention, is w - w^2 / 2s."""
    s, w = 64, 8
    full = Shape(16, 100, 2, 2, 4, 4, n_dense_layers=3, dense_width=32)
    windowed = Shape(16, 100, 2, 2, 4, 4, n_dense_layers=3, dense_width=32, window=w, n_window_layers=2)
    mean = sum(min(t, w) for t in range(s)) / s + 0.5 * w / s
    saved = flops_per_token(full, s) - flops_per_token(windowed, s)
    assert saved == pytest.approx(2 * 6 * 2 * 8 * (s / 2 - mean))
    assert flops_per_token(windowed, w) == flops_per_token(full, w)


def test_dense_and_moe_layers_in_turn_are_counted_apart() -> None:
    """Llama-4-Maverick: 24 dense layers of 48."""
    row = next(row for row in read_table("published_runs") if row["model"] == "Llama-4-Maverick")
    shape = shape_of_row(row)
    assert (shape.n_dense_layers, shape.n_moe_layers, shape.shared_width) == (24, 24, 8192)


def test_a_row_with_latent_attention_is_v3s_config() -> None:
    row = next(row for row in read_table("model_shapes") if row["model"] == "DeepSeekV3")
    assert shape_of_row(row) == shape_of(V3)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("hidden", "", "hidden"),
        ("heads", "0", "heads"),
        ("vocab", "many", "vocab"),
        ("head_dim", "wide", "head_dim"),
        ("head_dim", "MLA(1, 2)", "q rank"),
        ("dense_layers", "127", "dense_layers"),
        ("kv_heads", "0", "kv_heads"),
        ("kv_heads", "8.5", "kv_heads"),
        ("shared_ffn", "-5", "shared_ffn"),
        ("ffn_mats", "0", "ffn_mats"),
        ("layers", "inf", "layers"),
    ],
)
def test_a_wrong_cell_is_named(column: str, value: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        shape_of_row({**LLAMA_405B, column: value})


def test_active_parameters_are_the_names_of_the_models() -> None:
    """To the rounding of the names; embedding and head are in."""
    for model, billions in (("LLAMA3_8B", 8.0), ("LLAMA3_70B", 70.6), ("Qwen3_235B_a22B", 22.2)):
        row = next(row for row in read_table("model_shapes") if row["model"] == model)
        assert shape_of_row(row).active_parameters == pytest.approx(billions * 1e9, rel=0.01)
