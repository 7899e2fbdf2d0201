"""Ablations that are fair by construction: what is solved for, when composing."""

import pytest

from deepseek_mini import run_files
from deepseek_mini.analysis.runs import kv_bytes_per_token
from deepseek_mini.compose import ConfigError, config_dir, group_options, load_config
from deepseek_mini.config import Attention, AttentionMatch
from deepseek_mini.cost.flops import (
    active_params,
    count_active_parameters,
    count_parameters,
    flops_by_component,
    flops_per_token,
)
from deepseek_mini.cost.shape import shape_of
from deepseek_mini.optim.schedule import plan_run
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


@pytest.mark.parametrize("scale", [0.5, 0.75, 1.25])
def test_a_scaled_run_has_tokens_in_proportion_to_its_parameters(scale: float) -> None:
    whole, scaled = (load_config(["experiment=minute", f"scale={s}"]) for s in (1, scale))
    assert scaled.model.dim == scale * whole.model.dim
    assert scaled.model.n_routed_experts == whole.model.n_routed_experts
    assert scaled.trainer.max_steps == round(scale**2 * 120)
    embedding = 2 * whole.model.vocab_size * whole.model.dim
    weights = [active_params(c.model) - embedding * s for c, s in ((whole, 1), (scaled, scale))]
    assert weights[1] == pytest.approx(scale**2 * weights[0], rel=0.02)  # norms and gates grow with the scale
    by_tokens = load_config(["trainer.max_steps=null", "trainer.max_tokens=1000", f"scale={scale}"])
    assert by_tokens.trainer.max_tokens == round(1000 * scale**2)
    assert scaled.scale == 1


@pytest.mark.parametrize("change", ["model.mtp.depth=0", "model.n_shared_experts=0", "model.attention=mha"])
def test_equal_flops_are_spent_to_within_a_step(change: str) -> None:
    budget = 1e12
    settings = ["experiment=minute", "trainer.max_steps=null", f"trainer.max_flops={budget}", change]
    config = load_config(settings)
    plan = plan_run(config)
    each = flops_per_token(config.model, 128, mtp=config.model.mtp.depth > 0)
    spent = 128 * each * sum(step.batch_size for step in plan)
    assert budget * (1 - 1e-5) <= spent < budget + 128 * each * config.data.batch_size
    assert plan[-1].lr <= 0.1 * config.optimizer.lr  # the schedule has come to its end


def test_mla_is_its_own_measure() -> None:
    assert load_config(["model.attention_match=parameters"]) == load_config([])


def test_a_resolved_config_reads_back_as_it_is(tmp_path) -> None:
    config = load_config(
        [
            *("model.moe.granularity=2", "model.attention=mha", "model.attention_match=parameters"),
            *("scale=0.5", "trainer.max_steps=null", "trainer.max_flops=1e12"),
        ]
    )
    (tmp_path / run_files.CONFIG).write_text(run_files.config_text(config))
    assert run_files.read_config(tmp_path) == config
    assert config.model.attention is Attention.mha


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.moe.granularity=3", "granularity=3 does not divide model.moe_inter_dim=128"),
        ("scale=0.7", r"scale=0.7 makes model.dim=179.2, no whole number"),
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


def test_a_match_that_an_even_width_misses_by_far_is_refused() -> None:
    """A cache of (64 + 16) / 2 channels over 8 heads of 5: with 4 or 6 it is a fifth off."""
    overrides = ["experiment=minute", "model.attention=mha", "model.attention_match=kv_bytes"]
    assert load_config(overrides).model.v_head_dim == 10
    with pytest.raises(ConfigError, match=r"heads of 5.00; .* 4 misses by 20%; change model.n_heads"):
        load_config([*overrides, "model.n_heads=8"])


def test_the_ladder_is_four_sizes_and_takes_a_variant(tmp_path) -> None:
    jobs = plan(["experiment=ladder", "model.mtp.depth=0,1"])
    assert len(jobs) == 8
    assert len({job.run_dir for job in jobs}) == 8
    assert [job.label for job in jobs[:2]] == ["model.mtp.depth=0 scale=0.5", "model.mtp.depth=0 scale=0.75"]


ONE_OVERRIDE = [
    *(f"model.attention={kind}" for kind in ("mha", "gqa", "mqa")),
    *("model.kv_lora_rank=32", "model.q_lora_rank=0", "model.mtp.depth=2", "model.mtp.loss_weight=0.1"),
    *("model.moe.balance=aux_loss", "model.moe.balance=none", "model.moe.balance_scope=batch"),
    *("model.moe.bias_update_rate=0.001", "model.moe.sequence_loss_weight=0", "model.score_func=softmax"),
    *("model.n_activated_experts=2", "model.moe.granularity=2", "model.n_shared_experts=0"),
    *("model.n_limited_groups=4", "model.init_std=0.02", "optimizer=adamw", "precision=bf16"),
]


@pytest.mark.parametrize("override", ONE_OVERRIDE)
def test_what_is_worth_ablating_is_one_override(override: str) -> None:
    assert load_config(["experiment=minute", override]) != load_config(["experiment=minute"])


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
