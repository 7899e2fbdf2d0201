"""Ablations that are fair by construction: what `granularity` and `attention_match` solve for."""

import pytest

from deepseek_mini import run_files
from deepseek_mini.analysis.runs import kv_bytes_per_token
from deepseek_mini.compose import ConfigError, config_dir, group_options, load_config
from deepseek_mini.config import Attention, AttentionMatch
from deepseek_mini.cost.flops import count_active_parameters, count_parameters, flops_by_component
from deepseek_mini.cost.shape import shape_of
from deepseek_mini.sweep import plan


@pytest.mark.parametrize("parts", [2, 4])
def test_finer_experts_have_the_same_parameters_and_active_flops(parts: int) -> None:
    coarse, fine = load_config([]).model, load_config([f"model.moe.granularity={parts}"]).model
    assert fine.n_routed_experts == parts * coarse.n_routed_experts
    assert fine.n_activated_experts == parts * coarse.n_activated_experts
    assert fine.moe.granularity == 1
    for count in (count_parameters, count_active_parameters):
        for name in ("routed_experts", "shared_experts", "attention", "dense"):
            assert count(fine)[name] == count(coarse)[name], name
    for name in ("routed_experts", "shared_experts"):
        assert (
            flops_by_component(shape_of(fine), 256)[name] == flops_by_component(shape_of(coarse), 256)[name]
        )


@pytest.mark.parametrize("attention", ["mha", "gqa", "mqa"])
@pytest.mark.parametrize("model", ["tiny", "v3_671b"])
def test_matched_parameters_are_within_a_pair_of_each_head(model: str, attention: str) -> None:
    latent = load_config([f"model={model}"]).model
    matched = load_config(
        [f"model={model}", f"model.attention={attention}", "model.attention_match=parameters"]
    ).model
    width = 2 * latent.dim * (latent.n_heads + shape_of(matched).n_kv_heads)  # weights of one more channel
    assert abs(shape_of(matched).attention_weights - shape_of(latent).attention_weights) <= width
    assert matched.attention_match is AttentionMatch.none


@pytest.mark.parametrize(("attention", "width"), [("mha", 20), ("gqa", 40), ("mqa", 80)])
def test_matched_cache_is_that_of_mla(attention: str, width: int) -> None:
    matched = load_config([f"model.attention={attention}", "model.attention_match=kv_bytes"]).model
    assert matched.v_head_dim == width  # (128 + 32) / 2 over 4, 2 and 1 heads
    assert kv_bytes_per_token(matched) == kv_bytes_per_token(load_config([]).model)


def test_mla_is_its_own_measure() -> None:
    assert load_config(["model.attention_match=parameters"]) == load_config([])


def test_a_resolved_config_reads_back_as_it_is(tmp_path) -> None:
    config = load_config(
        ["model.moe.granularity=2", "model.attention=mha", "model.attention_match=parameters"]
    )
    (tmp_path / run_files.CONFIG).write_text(run_files.config_text(config))
    assert run_files.read_config(tmp_path) == config
    assert config.model.attention is Attention.mha


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.moe.granularity=3", "granularity=3 does not divide model.moe_inter_dim=128"),
        ("model.moe.granularity=0", "model.moe.granularity=0 must be at least 1"),
        ("model.attention_match=size", "attention_match takes"),
    ],
)
def test_what_cannot_be_solved_is_refused_by_its_key(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config([override])


def test_no_width_is_no_model() -> None:
    overrides = ["model.attention=mha", "model.attention_match=kv_bytes", "model.n_heads=256"]
    with pytest.raises(ConfigError, match="leaves heads of 0"):
        load_config(overrides)


ABLATIONS = [name for name in group_options()["experiment"] if name.startswith("ablate_")]


@pytest.mark.parametrize("experiment", ABLATIONS)
def test_every_ablation_is_a_sweep_over_three_seeds_with_a_question(experiment: str) -> None:
    jobs = plan([f"experiment={experiment}"])
    seeds = [job.label.rpartition("seed=")[2] for job in jobs]
    assert seeds == ["0", "1", "2"] * (len(jobs) // 3)
    assert len(jobs) >= 6
    first = (config_dir() / f"experiment/{experiment}.yaml").read_text().splitlines()[1]
    assert first.startswith("# ")
    assert "?" in first
