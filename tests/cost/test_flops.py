import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek_mini.config import (
    Attention,
    Balance,
    GroupScore,
    ModelConfig,
    MoeConfig,
    MtpConfig,
    ScoreFunction,
)
from deepseek_mini.cost.flops import (
    active_params,
    count_active_parameters,
    count_parameters,
    flops_by_convention,
    flops_per_token,
    kv_cache_bytes_per_token,
    mtp_params,
    six_n,
    total_params,
)

V3 = ModelConfig()
V2 = ModelConfig(
    vocab_size=102400,
    dim=5120,
    inter_dim=12288,
    moe_inter_dim=1536,
    n_layers=60,
    n_dense_layers=1,
    n_routed_experts=160,
    n_shared_experts=2,
    n_activated_experts=6,
    n_limited_groups=3,
    score_func=ScoreFunction.softmax,
    group_score=GroupScore.max,
    route_scale=16.0,
    moe=MoeConfig(balance=Balance.aux_loss),
    mtp=MtpConfig(depth=0),
)
V2_LITE = ModelConfig(
    vocab_size=102400,
    dim=2048,
    inter_dim=10944,
    moe_inter_dim=1408,
    n_layers=27,
    n_dense_layers=1,
    n_heads=16,
    n_routed_experts=64,
    n_shared_experts=2,
    n_activated_experts=6,
    n_expert_groups=1,
    n_limited_groups=1,
    score_func=ScoreFunction.softmax,
    group_score=GroupScore.max,
    route_scale=1.0,
    q_lora_rank=0,
    moe=MoeConfig(balance=Balance.aux_loss),
    mtp=MtpConfig(depth=0),
)


@pytest.mark.parametrize(
    ("config", "total", "active", "mtp"),
    [
        (V3, 671_026_419_200, 37_552_297_472, 11_610_068_224),
        (V2, 235_741_434_880, 21_375_800_320, 0),
        (V2_LITE, 15_706_484_224, 2_661_150_208, 0),
    ],
    ids=["v3_671b", "v2_236b", "v2_lite_16b"],
)
def test_parameter_counts_are_those_of_the_released_models(
    config: ModelConfig, total: int, active: int, mtp: int
) -> None:
    assert (total_params(config), active_params(config), mtp_params(config)) == (total, active, mtp)


def test_components_of_v3_and_v2() -> None:
    assert count_parameters(V3) == {
        "embedding": 926_679_040,
        "head": 926_679_040,
        "attention": 11_413_547_008,
        "dense": 1_189_085_184,
        "shared_experts": 2_554_331_136,
        "routed_experts": 653_908_770_816,
        "gate": 106_445_312,
        "norms": 881_664,
    }
    v2 = count_parameters(V2)
    assert (v2["attention"], v2["gate"], v2["norms"]) == (8_953_651_200, 48_332_800, 619_520)


def test_one_routed_expert_in_32_is_active_in_v3() -> None:
    total, active = count_parameters(V3), count_active_parameters(V3)
    assert active.pop("routed_experts") * 32 == total.pop("routed_experts")
    assert active == total


@pytest.mark.parametrize(
    ("config", "causal", "noncausal"),
    [(V3, 249.81e9, 280.51e9), (V2, 155.01e9, 185.21e9), (V2_LITE, 16.4e9, 18.1e9)],
    ids=["v3_671b", "v2_236b", "v2_lite_16b"],
)
def test_flops_per_token_at_4096_in_the_main_conventions(
    config: ModelConfig, causal: float, noncausal: float
) -> None:
    published_digits = 0.005e9 if causal > 100e9 else 0.05e9
    assert flops_per_token(config, 4096) == pytest.approx(causal, abs=published_digits)
    assert flops_per_token(config, 4096, causal=False) == pytest.approx(noncausal, abs=published_digits)


def test_flops_per_token_of_v3_with_mtp_and_with_the_gate() -> None:
    assert flops_per_token(V3, 4096, mtp=True) == pytest.approx(259.99e9, abs=0.005e9)
    assert flops_per_token(V3, 4096, gate=True) == pytest.approx(250.45e9, abs=0.005e9)
    assert six_n(V3) == 6 * 37_552_297_472
    assert flops_per_token(V3, 32768) == pytest.approx(464.7e9, abs=0.05e9)


def test_mtp_flops_hold_a_second_head_product_and_the_projection() -> None:
    """With the block taken away, what one depth adds is the head and eh_proj."""
    one_more_layer = ModelConfig(n_layers=V3.n_layers + 1)
    added = flops_per_token(V3, 4096, mtp=True) - flops_per_token(one_more_layer, 4096)
    assert added == 6 * (V3.vocab_size * V3.dim + 2 * V3.dim**2)


def test_every_convention_is_named() -> None:
    flops = flops_by_convention(V3, 4096)
    assert list(flops) == [
        "causal",
        "noncausal",
        "causal_with_mtp",
        "noncausal_with_mtp",
        "causal_with_gate",
        "six_n",
    ]
    assert flops["noncausal_with_mtp"] == flops_per_token(V3, 4096, causal=False, mtp=True)


def test_kv_cache_of_v3_per_token() -> None:
    cache = kv_cache_bytes_per_token(V3)
    assert cache == {"mla": 70_272, "mha": 3_997_696, "gqa8": 249_856, "mqa": 31_232}
    assert 1 - cache["mla"] / cache["mha"] == pytest.approx(0.9824, abs=5e-5)
    assert 1 - cache["mla"] / cache["gqa8"] == pytest.approx(0.719, abs=5e-4)


def test_counting_needs_no_torch() -> None:
    code = "import sys, deepseek_mini.cost.flops; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@st.composite
def small_configs(draw: st.DrawFn) -> ModelConfig:
    """Small models of every kind: attention, direct query, no dense or no MoE layers, MTP of any depth."""
    n_layers = draw(st.integers(1, 3))
    n_heads = draw(st.sampled_from([2, 4]))
    groups = draw(st.sampled_from([1, 2]))
    return ModelConfig(
        vocab_size=draw(st.integers(3, 50)),
        dim=draw(st.integers(2, 24)),
        inter_dim=draw(st.integers(1, 24)),
        moe_inter_dim=draw(st.integers(1, 24)),
        n_layers=n_layers,
        n_dense_layers=draw(st.integers(0, n_layers)),
        n_heads=n_heads,
        n_kv_heads=2,
        n_routed_experts=4 * groups,
        n_shared_experts=draw(st.integers(0, 2)),
        n_activated_experts=draw(st.integers(1, 4)),
        n_expert_groups=groups,
        n_limited_groups=draw(st.integers(1, groups)),
        q_lora_rank=draw(st.integers(0, 5)),
        kv_lora_rank=draw(st.integers(1, 5)),
        qk_nope_head_dim=draw(st.integers(1, 6)),
        qk_rope_head_dim=2 * draw(st.integers(1, 3)),
        v_head_dim=2 * draw(st.integers(1, 4)),
        attention=draw(st.sampled_from(Attention)),
        moe=MoeConfig(balance=draw(st.sampled_from(Balance))),
        mtp=MtpConfig(depth=draw(st.integers(0, 2))),
    )


@settings(max_examples=60, deadline=None)
@given(config=small_configs())
def test_counts_are_those_of_the_real_modules(config: ModelConfig) -> None:
    main, mtp = _tensors(config)
    assert sum(main.values()) == total_params(config)
    assert sum(mtp.values()) == mtp_params(config)


@settings(max_examples=60, deadline=None)
@given(config=small_configs())
def test_matmul_flops_are_six_per_weight_that_a_token_meets(config: ModelConfig) -> None:
    """From the real modules: all but norms, embedding and gate; routed experts by their active share."""
    main, mtp = _tensors(config)
    share = config.n_activated_experts / config.n_routed_experts
    head = config.vocab_size * config.dim

    def weights(tensors: dict[str, int]) -> float:
        return sum(
            n * (share if ".experts." in name else 1)
            for name, n in tensors.items()
            if not any(part in name for part in ("norm", "embed", "gate."))
        )

    assert flops_per_token(config, 0) == pytest.approx(6 * weights(main), rel=1e-12)
    with_mtp = 6 * (weights(main) + weights(mtp) + config.mtp.depth * head)
    assert flops_per_token(config, 0, mtp=True) == pytest.approx(with_mtp, rel=1e-12)


def _tensors(config: ModelConfig) -> tuple[dict[str, int], dict[str, int]]:
    """Sizes of the parameters and gate biases of the built model, main and MTP apart."""
    from deepseek_mini.model.transformer import build_on_meta

    sizes = {name: tensor.numel() for name, tensor in build_on_meta(config).state_dict().items()}
    mtp = {name: n for name, n in sizes.items() if name.startswith("mtp.")}
    return {name: n for name, n in sizes.items() if name not in mtp}, mtp
