"""FLOPs per token against those that vendors imply."""

from dataclasses import replace
from statistics import median

import pytest

from deepseek_mini.config import ModelConfig
from deepseek_mini.cost.flops import flops_per_token
from deepseek_mini.cost.shape import shape_of_row
from deepseek_mini.cost.tables import read_table
from deepseek_mini.cost.throughput import model_key, release, score_pairs, summarise_pairs, with_mtp

PAIRS = score_pairs(read_table("nvidia_throughput"))
ROW = {
    "container": "26.08", "model": "DeepSeekV3", "system": "DGX-GB300", "seq_len": "4096",
    "tokens_per_s_per_gpu": "6288", "model_tflops_per_gpu": "1635",
}  # fmt: skip


def test_nvidias_pairs_agree_with_the_exact_count() -> None:
    summary = summarise_pairs(PAIRS)
    assert summary["n_scored"] == 96
    assert summary["median_abs_dev"] < 0.001
    assert summary["within_half_percent"] >= 0.95
    assert summary["worst"] < 0.005


def test_every_expressible_model_agrees_on_its_own() -> None:
    for name in ("LLAMA3_8B", "LLAMA3_70B", "LLAMA3.1_405B", "DeepSeekV3", "Qwen3_30B_a3B", "Kimi_K2"):
        deviations = [abs(p.deviation) for p in PAIRS if p.deviation is not None and p.model.startswith(name)]
        assert deviations, name
        assert median(deviations) < 0.0015, name


def test_gb300_rows_imply_v3_with_mtp() -> None:
    (pair,) = score_pairs([ROW])
    assert pair.vendor == pytest.approx(260.02e9, rel=1e-4)
    assert pair.ours == pytest.approx(259.99e9, rel=1e-4)


def test_deepseeks_own_figures_agree_within_their_rounding() -> None:
    """272.80B tokens a day on 2,048 GPUs at 38.94% causal and 43.73% of 989 TFLOPS."""
    tokens = 272.80e9 / 86400 / 2048
    for share, causal in ((0.3894, True), (0.4373, False)):
        implied = share * 989e12 / tokens
        assert flops_per_token(ModelConfig(), 4096, causal=causal) == pytest.approx(implied, rel=2e-4)


def test_pairs_left_out_are_listed_with_their_reason() -> None:
    excluded = {pair.model: pair.excluded for pair in PAIRS if pair.excluded}
    assert set(excluded) == {"GPT OSS 120B", "Nemotron_3_Nano"}
    assert "two of three SwiGLU matrices" in (excluded["GPT OSS 120B"] or "")
    assert "no shape" in (excluded["Nemotron_3_Nano"] or "")


def test_what_the_wrong_rows_counted_is_what_the_reason_says() -> None:
    """Two of three matrices and full windows: 27.16 at 4096 (exact: 32.63), 30.79 at 8192."""
    shapes = {row["model"]: shape_of_row(row) for row in read_table("model_shapes")}
    exact = shapes["GPT OSS 120B"]
    counted = replace(exact, mlp_matrices=2, n_window_layers=0)
    assert flops_per_token(exact, 4096) == pytest.approx(32.63e9, abs=5e6)
    for length, printed in ((4096, 27.16e9), (8192, 30.79e9)):
        assert flops_per_token(counted, length) == pytest.approx(printed, abs=5e6)
        pairs = [p for p in PAIRS if p.model == "GPT OSS 120B" and p.sequence_length == length]
        rows = [p.vendor for p in pairs if p.vendor]
        assert rows == pytest.approx([printed] * len(rows), rel=0.01)
        assert median(rows) == pytest.approx(printed, rel=1e-3)


def test_later_releases_of_the_wrong_model_count_again() -> None:
    row = {**ROW, "model": "GPT OSS 120B", "container": "26.06 NeMo Container"}
    (pair,) = score_pairs([{**row, "tokens_per_s_per_gpu": "10000", "model_tflops_per_gpu": "326.3"}])
    assert pair.excluded is None
    assert pair.deviation == pytest.approx(0, abs=1e-4)


def test_names_are_read_as_vendors_write_them() -> None:
    assert model_key("DeepSeekV3 (w/o MTP)") == model_key("DeepSeek-V3 (dropless)") == "deepseekv3"
    assert not with_mtp("DeepSeekV3 (w/o MTP)")
    assert not with_mtp("DeepSeek-V3 (without MTP)")
    assert with_mtp("DeepSeekV3 (w/ MTP)")
    assert release("26.04.01 NeMo Container") == (26, 4, 1) > release("26.02 NeMo Container")


@pytest.mark.parametrize("column", ["tokens_per_s_per_gpu", "model_tflops_per_gpu", "seq_len"])
def test_a_row_that_lacks_a_figure_is_listed_and_not_scored(column: str) -> None:
    """Vendors publish many rates without TFLOPS: they must not keep the others from being scored."""
    lacking, whole = score_pairs([{**ROW, column: "n/a"}, ROW])
    assert (lacking.excluded, lacking.deviation is None) == (f"no {column}", True)
    assert summarise_pairs([lacking, whole])["n_scored"] == 1


@pytest.mark.parametrize("tokens", ["0", "-3", "fast", "nan", "inf"])
def test_a_wrong_cell_names_its_line(tokens: str) -> None:
    with pytest.raises(ValueError, match=r"line 2: .*tokens_per_s_per_gpu"):
        score_pairs([{**ROW, "tokens_per_s_per_gpu": tokens}])


def test_a_file_without_known_models_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model_shapes\.csv"):
        summarise_pairs(score_pairs([{**ROW, "model": "Unheard-of 3B"}]))


def test_a_file_without_model_names_is_refused() -> None:
    with pytest.raises(ValueError, match="no column 'model'"):
        score_pairs([{name: value for name, value in ROW.items() if name != "model"}])
