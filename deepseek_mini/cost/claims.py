"""Popular claims about DeepSeek-V3 beside what this model says, each computed here.

The claims and their verdicts against the primary sources are in `docs/results/claims.md`.
"""

from dataclasses import dataclass

from deepseek_mini.config import ModelConfig
from deepseek_mini.cost.communication import FP8_TILE, expected_nodes
from deepseek_mini.cost.devices import find_gpu
from deepseek_mini.cost.flops import (
    active_params,
    flops_per_token,
    kv_cache_bytes_per_token,
    mtp_params,
    six_n,
    total_params,
)
from deepseek_mini.cost.layer_profile import read_layer_profile
from deepseek_mini.cost.plan import LaterStage
from deepseek_mini.cost.runs import parse_runs
from deepseek_mini.cost.shape import shape_of
from deepseek_mini.cost.tables import read_table

TOKENS = 14.8e12
LENGTH = 4096
SPARSE_FP8 = 3957.8e12
"""FLOP/s of an H800 with 2:4 sparsity, which does not apply to dense training (H100 SXM data sheet)."""


@dataclass(frozen=True, slots=True)
class Claim:
    claim: str
    claimed: float | None
    """The number in the claim, in the unit of `model`."""
    model: float
    """What this model computes."""
    says: str
    """The same in words."""


def popular_claims(
    config: ModelConfig, hours: dict[str, float], later: tuple[LaterStage, ...]
) -> list[Claim]:
    """All claims; `config` is V3's, `hours` the P50 of a run's lines by name, `later` its later stages."""
    return [
        *_attention_claims(config),
        *_training_claims(config),
        *_stage_claims(hours, later),
        *_cost_claims(config, hours),
    ]


def _attention_claims(config: ModelConfig) -> list[Claim]:
    cache = kv_cache_bytes_per_token(config)
    against_mha, against_gqa = (1 - cache["mla"] / cache[kind] for kind in ("mha", "gqa8"))
    saving = f"{against_mha:.1%} against its own multi-head form, {against_gqa:.1%} against 8 groups"
    return [
        Claim(
            "MLA compresses to a 64-dimensional latent",
            64,
            config.kv_lora_rank,
            f"the latent has {config.kv_lora_rank}; {config.qk_rope_head_dim} is the shared rotated key",
        ),
        Claim("MLA cuts the KV cache by 68%", 0.68, against_mha, saving),
        Claim(
            "MLA compresses the KV cache by 93%",
            0.93,
            against_mha,
            f"{saving}; 93.3% is V2, with a 6-bit cache, against DeepSeek 67B",
        ),
    ]


def _training_claims(config: ModelConfig) -> list[Claim]:
    shape, profile = shape_of(config), read_layer_profile()
    flops = 2 * (shape.shared_weights + shape.top_k * shape.expert_weights) * profile.tokens
    rate = flops / profile.seconds["mlp_input_grad"]["gemm"]
    peak = find_gpu(profile.device).bf16 or 0.0
    free = expected_nodes(shape.n_experts, shape.top_k, config.n_expert_groups)
    limited = expected_nodes(shape.n_experts, shape.top_k, config.n_expert_groups, config.n_limited_groups)
    plain = flops_per_token(config, LENGTH)
    with_mtp = flops_per_token(config, LENGTH, mtp=True)
    return [
        Claim(
            "FP8 forward, FP16 backward",
            peak,
            rate / 1e12,
            f"the trace's backward MLP products run at {rate / 1e12:,.0f} TFLOPS, above the 16-bit peak of "
            f"{peak:,.0f}: they are FP8",
        ),
        Claim(
            "FP8 with dynamic per-tensor scaling",
            1,
            shape.dim // FP8_TILE,
            f"a token's {shape.dim:,} channels have {shape.dim // FP8_TILE} scales, one per {FP8_TILE}; "
            f"weights one per {FP8_TILE} x {FP8_TILE} block",
        ),
        Claim(
            "device-limited routing: 83% less all-to-all",
            0.83,
            1 - limited / free,
            f"{limited:.2f} nodes per token instead of {free:.2f}: {1 - limited / free:.0%} less",
        ),
        Claim(
            "MTP makes training 1.5 times as efficient",
            1.5,
            plain / with_mtp,
            f"it costs {with_mtp / plain - 1:.1%} more FLOPs in training; what it speeds up is decoding",
        ),
        Claim(
            "V3 takes 120 to 150 GFLOP per token",
            150e9,
            plain,
            f"{plain / 1e9:.2f} G at {LENGTH:,} tokens, causal; 6N is {six_n(config) / 1e9:.0f} G",
        ),
        Claim(
            "a dense 671B model takes 2 TFLOP per token",
            2e12,
            6.0 * total_params(config),
            f"6N is {6 * total_params(config) / 1e12:.1f} TFLOP: "
            f"{total_params(config) / active_params(config):.0f} times that of the active parameters",
        ),
        Claim(
            "V3 has 685B parameters",
            685e9,
            float(total_params(config)),
            f"{total_params(config) / 1e9:.1f}B, and {mtp_params(config) / 1e9:.1f}B in MTP; the released "
            "files hold embedding and head twice",
        ),
    ]


def _stage_claims(hours: dict[str, float], later: tuple[LaterStage, ...]) -> list[Claim]:
    extension = [stage for stage in later if "extension" in stage.name]
    tokens = {stage.sequence_length: stage.tokens for stage in extension}
    extension_hours = sum(hours[stage.name] for stage in extension)
    post = hours["post-training"]
    shown = (
        f"{post / 1e3:.1f}K, reinforcement learning not counted; context extension takes "
        f"{extension_hours / 1e3:.0f}K"
    )
    return [
        Claim(
            "curriculum: 10T tokens at 4K, 400B at 32K, 60B at 128K",
            400e9,
            tokens[32768],
            f"all 14.8T at 4K, then 1,000 steps each: {tokens[32768] / 1e9:.1f}B at 32K, "
            f"{tokens[131072] / 1e9:.1f}B at 128K",
        ),
        Claim("fine-tuning took 100K GPU-hours", 100e3, post, shown),
        Claim(
            "reinforcement learning took 24K GPU-hours", 24e3, post, f"{shown}; 5K is published for all of it"
        ),
    ]


def _cost_claims(config: ModelConfig, hours: dict[str, float]) -> list[Claim]:
    flops, h800 = TOKENS * flops_per_token(config, LENGTH), find_gpu("h800")
    bf16, fp8, sparse = (
        flops / peak / 3600 for peak in ((h800.bf16 or 0) * 1e12, (h800.fp8 or 0) * 1e12, SPARSE_FP8)
    )
    llama = next(run for run in parse_runs(read_table("published_runs"))[0] if run.model == "Llama-3.1-405B")
    assert llama.gpu_hours is not None
    scaled = llama.gpu_hours * flops / llama.flops
    steady = next(iter(hours.values()))
    others = sum(list(hours.values())[1:])
    return [
        Claim(
            "0.4M GPU-hours would do at perfect efficiency (3,958 TFLOPS)",
            0.4e6,
            sparse,
            f"{sparse / 1e6:.2f}M at that peak, which is for sparse products; {fp8 / 1e6:.2f}M at the dense "
            f"FP8 peak, {bf16 / 1e6:.2f}M at BF16's",
        ),
        Claim(
            "8.33e8 GPU-seconds are 0.4M GPU-hours",
            0.4e6,
            8.33e8 / 3600,
            f"{8.33e8 / 3600 / 1e6:.2f}M, by arithmetic",
        ),
        Claim(
            "Llama 3.1 405B cost $8M to $12M",
            12e6,
            llama.gpu_hours * 2,
            f"30.84M GPU-hours are ${llama.gpu_hours * 2 / 1e6:.1f}M at $2",
        ),
        Claim(
            "V3 took 40% fewer GPU-hours than Llama's efficiency would",
            0.4,
            1 - 2.788e6 / scaled,
            f"Llama 405B's hours scaled by exact FLOPs are {scaled / 1e6:.2f}M: V3's 2.79M are "
            f"{1 - 2.788e6 / scaled:.0%} fewer",
        ),
        Claim(
            "pre-training took 2.788M GPU-hours",
            2.788e6,
            steady,
            f"that is the published total; the model's steady pre-training is {steady / 1e6:.2f}M (published "
            f"2.664M) and all else {others / 1e6:.2f}M",
        ),
    ]
