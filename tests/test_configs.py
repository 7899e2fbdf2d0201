"""Every yaml file that is shipped composes, and DeepSeek's own models have DeepSeek's own numbers."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from deepseek_mini.compose import config_dir, group_options, load_config
from deepseek_mini.config import Attention, Balance, GroupScore, Phase, ScoreFunction, Shape
from deepseek_mini.cost.flops import flops_per_token, total_params

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted(config_dir().rglob("*.yaml"))
GROUPS = group_options()


@pytest.mark.parametrize("row", range(max(map(len, GROUPS.values()))))
def test_every_shipped_option_composes_and_is_valid(row: int) -> None:
    """Row after row, as far down as the longest group has options."""
    columns = {group: options for group, options in GROUPS.items() if group != "experiment"}
    load_config([f"{group}={options[row % len(options)]}" for group, options in columns.items()])


@pytest.mark.parametrize("experiment", GROUPS["experiment"])
def test_every_shipped_experiment_composes_and_is_valid(experiment: str) -> None:
    load_config([f"experiment={experiment}"])


@pytest.mark.parametrize("model", GROUPS["model"])
def test_every_model_is_trained_by_its_own_recipe(model: str) -> None:
    recipe = yaml.safe_load((config_dir() / "recipe" / f"{model}.yaml").read_text())
    config = load_config([f"model={model}"])
    assert config.optimizer.lr == recipe["optimizer"]["lr"]
    assert config.data.sequence_length == recipe["data"]["sequence_length"]
    assert config.data.batch_size == recipe["data"]["batch_size"]
    assert config.trainer.max_steps == recipe["trainer"]["max_steps"]
    assert config.schedule.min_warmup_steps == recipe["schedule"]["min_warmup_steps"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(config_dir()).as_posix())
def test_every_file_begins_with_what_it_is_for(path: Path) -> None:
    lines = path.read_text().splitlines()
    meaning = lines[1] if lines[0] == "# @package _global_" else lines[0]
    assert re.fullmatch(r"# \w.{20,}", meaning), f"{path}: {meaning}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(config_dir()).as_posix())
def test_yaml_files_hold_choices_only(path: Path) -> None:
    text = path.read_text()
    assert "_target_" not in text
    assert not re.search(r"\$\{\w+:", text), "a resolver"
    assert path.name == "config.yaml" or "${" not in text
    assert yaml.safe_load(text), "an empty file"


@pytest.mark.parametrize("model", GROUPS["model"])
def test_model_files_spell_out_the_architecture(model: str) -> None:
    """A model must not change because a default of the schema does."""
    v3 = set(yaml.safe_load((config_dir() / "model/v3_671b.yaml").read_text()))
    assert set(yaml.safe_load((config_dir() / f"model/{model}.yaml").read_text())) - {"defaults"} == v3


PUBLISHED = {
    # layers, dense, dim, heads, q and kv rank, dense and expert width, routed, shared, top-k, groups, limit
    "v3_671b": (61, 3, 7168, 128, 1536, 512, 18432, 2048, 256, 1, 8, 8, 4),
    "v2_236b": (60, 1, 5120, 128, 1536, 512, 12288, 1536, 160, 2, 6, 8, 3),
    "v2_lite_16b": (27, 1, 2048, 16, 0, 512, 10944, 1408, 64, 2, 6, 1, 1),
}
TRAINING = {
    # vocabulary, route_scale, balance, weight of the loss, MTP, lr, batch, tokens
    "v3_671b": (129280, 2.5, Balance.bias, 1e-4, 1, 2.2e-4, 15360, 14_800_000_000_000),
    "v2_236b": (102400, 16.0, Balance.aux_loss, 0.003, 0, 2.4e-4, 9216, 8_100_000_000_000),
    "v2_lite_16b": (102400, 1.0, Balance.aux_loss, 0.001, 0, 4.2e-4, 4608, 5_700_000_000_000),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_official_models_have_the_published_shape(name: str) -> None:
    model = load_config([f"model={name}"]).model
    assert PUBLISHED[name] == (
        model.n_layers,
        model.n_dense_layers,
        model.dim,
        model.n_heads,
        model.q_lora_rank,
        model.kv_lora_rank,
        model.inter_dim,
        model.moe_inter_dim,
        model.n_routed_experts,
        model.n_shared_experts,
        model.n_activated_experts,
        model.n_expert_groups,
        model.n_limited_groups,
    )
    assert (model.qk_nope_head_dim, model.qk_rope_head_dim, model.v_head_dim) == (128, 64, 128)
    v3 = name == "v3_671b"
    assert model.score_func is (ScoreFunction.sigmoid if v3 else ScoreFunction.softmax)
    assert model.group_score is (GroupScore.top2 if v3 else GroupScore.max)
    assert (model.attention, model.max_seq_len, model.init_std) == (Attention.mla, 4096, 0.006)


@pytest.mark.parametrize("name", TRAINING)
def test_official_models_are_trained_as_published(name: str) -> None:
    config = load_config([f"model={name}"])
    assert TRAINING[name] == (
        config.model.vocab_size,
        config.model.route_scale,
        config.model.moe.balance,
        config.model.balance_loss_weight,
        config.model.mtp.depth,
        config.optimizer.lr,
        config.data.batch_size,
        config.trainer.max_tokens,
    )
    assert config.data.sequence_length == 4096
    assert (config.optimizer.beta1, config.optimizer.beta2) == (0.9, 0.95)
    assert (config.optimizer.weight_decay, config.optimizer.clip_norm) == (0.1, 1.0)


def test_v3_schedule_has_the_published_boundaries() -> None:
    """arXiv:2412.19437, section 4.2, in tokens of 14.8T and in units of the peaks."""
    config = load_config(["model=v3_671b"])
    total, peak = 14.8e12, config.optimizer.lr
    lr = config.schedule.lr
    assert [phase.until * total for phase in lr] == pytest.approx(
        [10e12, 14.3e12, 14.633e12, total], rel=1e-4
    )
    assert [phase.value * peak for phase in lr] == pytest.approx([2.2e-4, 2.2e-5, 2.2e-5, 7.3e-6], rel=1e-4)
    assert [phase.shape for phase in lr] == [Shape.constant, Shape.cosine, Shape.constant, Shape.constant]
    ramp, rest = config.schedule.batch_size
    assert ramp.start is not None
    assert ramp.start * config.data.batch_size == pytest.approx(3072)
    assert (ramp.until * total, ramp.shape) == (pytest.approx(469e9, rel=1e-4), Shape.linear)
    assert rest == Phase(until=1.0, value=1.0)
    assert [phase.value * 0.3 for phase in config.schedule.mtp_weight] == pytest.approx([0.3, 0.1], rel=1e-5)
    assert [phase.value for phase in config.schedule.bias_rate] == [1.0, 0.0]


@pytest.mark.parametrize("name", ["tiny", "small"])
def test_miniatures_are_v3_in_every_respect(name: str) -> None:
    mini, v3 = load_config([f"model={name}"]).model, load_config(["model=v3_671b"]).model
    for key in (
        "score_func",
        "group_score",
        "route_scale",
        "attention",
        "n_shared_experts",
        "mtp",
        "init_std",
    ):
        assert getattr(mini, key) == getattr(v3, key), key
    assert mini.q_lora_rank > 0
    assert 1 < mini.n_limited_groups < mini.n_expert_groups
    assert mini.moe.balance is Balance.bias
    assert mini.inter_dim == mini.moe_inter_dim * (mini.n_shared_experts + mini.n_activated_experts)


@pytest.mark.parametrize("name", ["tiny", "small"])
def test_widths_of_miniatures_fill_fp8_blocks(name: str) -> None:
    """Multiples of 128, as 128x128 weight blocks want them, but for wkv_a's output (576 in V3)."""
    model = load_config([f"model={name}"]).model
    head_widths = (model.qk_head_dim, model.qk_nope_head_dim + model.v_head_dim, model.v_head_dim)
    widths = [model.n_heads * width for width in head_widths]
    widths += [model.dim, model.inter_dim, model.moe_inter_dim, model.q_lora_rank, model.kv_lora_rank]
    assert [width % 128 for width in widths] == [0] * len(widths)


def test_small_has_about_150_million_parameters() -> None:
    """The arithmetic of its comment, without norms and MTP."""
    m = load_config(["model=small"]).model
    attention = m.dim * (m.q_lora_rank + m.kv_lora_rank + m.qk_rope_head_dim + m.n_heads * m.v_head_dim)
    attention += m.q_lora_rank * m.n_heads * m.qk_head_dim
    attention += m.kv_lora_rank * m.n_heads * (m.qk_nope_head_dim + m.v_head_dim)
    moe = (m.n_routed_experts + m.n_shared_experts) * 3 * m.dim * m.moe_inter_dim + m.n_routed_experts * m.dim
    layers = m.n_layers * attention + (m.n_layers - m.n_dense_layers) * moe
    total = 2 * m.vocab_size * m.dim + layers + m.n_dense_layers * 3 * m.dim * m.inter_dim
    assert total == pytest.approx(142e6, rel=0.005)


def test_bench_29m_has_the_shape_that_speeds_are_stated_for() -> None:
    """52.7 MFLOP per token at 512 tokens, gate included; 8 x 512 tokens per step."""
    config = load_config(["model=bench_29m"])
    model = config.model
    assert (model.dim, model.n_layers, model.n_dense_layers, model.inter_dim) == (256, 6, 1, 704)
    assert (model.n_heads, model.q_lora_rank, model.kv_lora_rank) == (8, 192, 128)
    assert (model.qk_rope_head_dim, model.qk_nope_head_dim, model.v_head_dim) == (16, 32, 32)
    assert (model.n_routed_experts, model.moe_inter_dim, model.n_shared_experts) == (32, 176, 1)
    assert (model.n_activated_experts, model.n_expert_groups, model.n_limited_groups) == (4, 4, 2)
    assert (model.vocab_size, model.mtp.depth) == (8192, 0)
    assert (config.data.batch_size, config.data.sequence_length) == (8, 512)
    assert total_params(model) == 28_828_960
    assert flops_per_token(model, 512, gate=True) == pytest.approx(52.7e6, rel=0.001)


@pytest.mark.slow
def test_wheel_carries_the_configs(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = (
        "from deepseek_mini.compose import config_dir, load_config; "
        "print(config_dir()); print(load_config(['model=small', 'experiment=smoke']).model.dim)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "site"), "PATH": ""},
        check=True,
        capture_output=True,
        text=True,
    )
    assert result.stdout.split() == [str(tmp_path / "site/deepseek_mini/configs"), "512"]
