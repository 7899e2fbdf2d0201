import dataclasses
import re

import pytest
import torch

from deepseek_mini.config import (
    Attention,
    Backend,
    Config,
    DataConfig,
    Device,
    Format,
    ModelConfig,
    Moments,
    OptimizerConfig,
    PrecisionConfig,
    Recompute,
    TrainerConfig,
)
from deepseek_mini.cost import estimate
from deepseek_mini.cost.estimate import describe_run, estimate_memory, estimate_seconds
from deepseek_mini.cost.flops import flops_per_token, mtp_params, total_params
from deepseek_mini.cost.hardware import Peak
from deepseek_mini.model.recompute import recompute
from deepseek_mini.model.transformer import build_model
from deepseek_mini.precision.convert import convert
from live_memory import LiveMemory

CPU = torch.device("cpu")
SMALL = ModelConfig(
    vocab_size=100,
    dim=64,
    inter_dim=160,
    moe_inter_dim=48,
    n_layers=3,
    n_dense_layers=1,
    n_heads=4,
    n_kv_heads=2,
    n_routed_experts=8,
    n_activated_experts=2,
    n_expert_groups=2,
    n_limited_groups=1,
    q_lora_rank=24,
    kv_lora_rank=16,
    qk_nope_head_dim=16,
    qk_rope_head_dim=8,
    v_head_dim=16,
)


def small_run(recompute: Recompute = Recompute.none) -> Config:
    return Config(
        model=SMALL,
        data=DataConfig(sequence_length=96, batch_size=4),
        trainer=TrainerConfig(max_steps=10, recompute=recompute),
        device=Device.cpu,
    )


def kept_bytes(config: Config, dtype: torch.dtype) -> int:
    """Bytes that one forward pass keeps for the backward pass."""
    model = build_model(config.model, CPU, seed=0)
    convert(model, config.precision)
    recompute(model, config.trainer.recompute)
    tokens = torch.randint(
        0, config.model.vocab_size, (config.data.batch_size, config.data.sequence_length + 1)
    )
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16)
    with LiveMemory(*model.parameters(), *model.buffers(), tokens) as memory, autocast:
        losses = model.losses(tokens, torch.zeros_like(tokens))
        assert losses.main_sum.isfinite()
        return memory.bytes()


@pytest.mark.parametrize("attention", [Attention.mla, Attention.gqa])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("again", [Recompute.none, Recompute.v3])
def test_estimated_activations_are_within_a_fifth_of_what_autograd_keeps(
    again: Recompute, attention: Attention, dtype: torch.dtype
) -> None:
    config = small_run(again)
    config.model = dataclasses.replace(SMALL, attention=attention)
    memory = estimate_memory(config, CPU, dtype)
    estimated = memory["activations"] + memory.get("weights in BF16", 0)
    assert estimated == pytest.approx(kept_bytes(config, dtype), rel=0.2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("again", [Recompute.none, Recompute.v3])
def test_estimated_activations_in_fp8_are_within_a_fifth_of_what_autograd_keeps(
    again: Recompute, dtype: torch.dtype
) -> None:
    config = small_run(again)
    config.precision = PrecisionConfig(Format.fp8, Backend.emulated)
    memory = estimate_memory(config, CPU, dtype)
    estimated = memory["activations"] + memory.get("weights in BF16", 0)
    assert estimated == pytest.approx(kept_bytes(config, dtype), rel=0.2)
    config.precision = PrecisionConfig()
    assert memory["activations"] < estimate_memory(config, CPU, dtype)["activations"]


def test_check_of_fp8_says_what_multiplies_what_is_converted_and_what_it_saves() -> None:
    config = small_run()
    config.precision = PrecisionConfig(Format.fp8)
    text = describe_run(config)
    assert "precision   fp8 by emulated, fp32 factors; the rest " in text
    assert "fp8: not by triton: " in text
    assert "in fp8: layers.0-2.attn.{wq_a,wq_b,wkv_a,wkv_b,wo}, " in text
    assert "GiB of activations with precision=auto" in text
    assert "weights in FP8" in text


def test_moments_in_bf16_take_half_the_memory() -> None:
    config = small_run()
    before = estimate_memory(config, CPU, torch.float32)["optimizer moments"]
    config.optimizer = OptimizerConfig(moments=Moments.bf16)
    assert 2 * estimate_memory(config, CPU, torch.float32)["optimizer moments"] == before


def test_recompute_is_estimated_to_keep_the_block_inputs_and_one_block() -> None:
    kept = kept_bytes(small_run(Recompute.full), torch.float32)
    recomputed = estimate_memory(small_run(Recompute.full), CPU, torch.float32)["activations"]
    everything = estimate_memory(small_run(), CPU, torch.float32)["activations"]
    assert kept < recomputed < everything / 2


def test_check_shows_what_each_kind_of_recomputation_would_keep() -> None:
    activations = {
        choice: estimate_memory(small_run(choice), CPU, torch.float32)["activations"] for choice in Recompute
    }
    assert activations[Recompute.v3] < 0.7 * activations[Recompute.none]
    config = small_run()
    config.model = dataclasses.replace(SMALL, dim=4096)
    text = describe_run(config)
    assert "GiB of activations with trainer.recompute=v3" in text
    assert "GiB of activations with trainer.recompute=full" in text
    assert "recompute=none" not in text


def test_fp32_state_is_sixteen_bytes_per_parameter() -> None:
    memory = estimate_memory(small_run(), CPU, torch.float32)
    del memory["activations"]
    assert sum(memory.values()) == 16 * (total_params(SMALL) + mtp_params(SMALL))


def test_time_is_flops_over_the_assumed_share_of_the_peak() -> None:
    config = small_run()
    seconds = estimate_seconds(config, CPU, Peak(1e9, "made up"))
    assert seconds is not None
    flops = 10 * 4 * 96 * flops_per_token(SMALL, 96, mtp=True)
    assert seconds * 1e9 * estimate.ASSUMED_MFU["cpu"] == pytest.approx(flops)
    assert estimate_seconds(config, torch.device("mps"), Peak(None, "unknown device")) is None


def test_check_text_names_counts_conventions_memory_and_assumptions() -> None:
    text = describe_run(small_run())
    assert re.search(rf"^ +total +{total_params(SMALL):,} ", text, re.MULTILINE)
    assert f"{mtp_params(SMALL):,}" in text
    for name in ("causal with mtp", "noncausal", "six n", "optimizer moments", "assuming an MFU of 35%"):
        assert name in text
    assert "at 96 tokens" in text


def test_check_of_v3_takes_no_memory_and_holds_the_exact_counts() -> None:
    config = Config(data=DataConfig(sequence_length=4096, batch_size=15360), device=Device.cpu)
    config.trainer = TrainerConfig(max_tokens=14_800_000_000_000, micro_batch_size=1)
    text = describe_run(config)
    assert "671,026,419,200" in text
    assert "11,610,068,224" in text
    assert "249.811 G" in text


def test_unknown_peak_is_printed_as_not_available(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "matmul_peak", lambda device, dtype: Peak(None, "unknown device X"))
    assert "n/a for 3,840 tokens: no matmul peak (unknown device X)" in describe_run(small_run())


def test_counts_that_differ_from_the_built_model_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "mtp_params", lambda config: 0)
    with pytest.raises(AssertionError, match="the built model has"):
        describe_run(small_run())
