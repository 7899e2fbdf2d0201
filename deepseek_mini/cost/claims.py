"""Popular claims about DeepSeek-V3: what primary sources say, what this model computes, and a verdict.

`scripts/reproduce_claims.py` writes them down, with what small runs measure, as `docs/results/claims.md`.
Sources: V3 (arXiv:2412.19437), V2 (2405.04434), ISCA (2505.09343), LFB (2408.15664), Llama 3.1's model card.
"""

from deepseek_mini.config import ModelConfig
from deepseek_mini.cost.claim import Claim, Topic, Verdict
from deepseek_mini.cost.communication import FP8_TILE, expected_nodes
from deepseek_mini.cost.cost_claims import LENGTH, cost_claims, stage_claims
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
from deepseek_mini.cost.pipeline.closed_form import bubble as closed_form
from deepseek_mini.cost.plan import LaterStage
from deepseek_mini.cost.shape import shape_of

SECOND_TOKENS = (0.85, 0.9)
"""Acceptance of the second token (V3 section 5.4.3)."""


def popular_claims(
    config: ModelConfig, hours: dict[str, float], later: tuple[LaterStage, ...], bubble: float
) -> list[Claim]:
    """All claims; `config` is V3's, `hours` the P50 of a run's lines by name, `later` its later stages.

    `bubble` is the share of the simulated step that its ranks idle.
    """
    return [
        *_attention_claims(config),
        *_training_claims(config),
        *_decoding_claims(config),
        *_balance_claims(config),
        *_bubble_claims(bubble),
        *stage_claims(hours, later),
        *cost_claims(config, hours),
    ]


def _attention_claims(config: ModelConfig) -> list[Claim]:
    cache = kv_cache_bytes_per_token(config)
    against_mha, against_gqa = (1 - cache["mla"] / cache[kind] for kind in ("mha", "gqa8"))
    saving = f"{against_mha:.1%} against its own multi-head form, {against_gqa:.1%} against 8 groups"
    return [
        Claim(
            Topic.cache,
            "MLA compresses to a 64-dimensional latent",
            64,
            Verdict.corrected,
            "kv_lora_rank 512; 64 is the decoupled rotated key (V3 4.2)",
            config.kv_lora_rank,
            f"the latent has {config.kv_lora_rank}; {config.qk_rope_head_dim} is the shared rotated key",
        ),
        Claim(
            Topic.cache,
            "MLA cuts the KV cache by 68%",
            0.68,
            Verdict.unsupported,
            "no such figure; 70.3 KB per token (ISCA table 1)",
            against_mha,
            saving,
        ),
        Claim(
            Topic.cache,
            "MLA compresses the KV cache by 93%",
            0.93,
            Verdict.corrected,
            "93.3% is V2 with a 6-bit cache against DeepSeek 67B (V2 3.2.3)",
            against_mha,
            saving,
        ),
        Claim(
            Topic.cache,
            "V3's cache takes 70 KB per token",
            70e3,
            Verdict.confirmed,
            "70.272 KB (ISCA table 1)",
            cache["mla"],
            f"{cache['mla']:,} bytes in BF16",
        ),
    ]


def _training_claims(config: ModelConfig) -> list[Claim]:
    shape, profile = shape_of(config), read_layer_profile()
    flops = 2 * (shape.shared_weights + shape.top_k * shape.expert_weights) * profile.tokens
    rate = flops / profile.seconds["mlp_input_grad"]["gemm"]
    peak = find_gpu(profile.device).bf16 or 0.0
    free = expected_nodes(shape.n_experts, shape.top_k, config.n_expert_groups)
    limited = expected_nodes(shape.n_experts, shape.top_k, config.n_expert_groups, config.n_limited_groups)
    gpu, active, embedding = find_gpu("h800"), active_params(config), config.vocab_size * config.dim
    plain = flops_per_token(config, LENGTH)
    with_mtp = flops_per_token(config, LENGTH, mtp=True)
    return [
        Claim(
            Topic.fp8,
            "FP8 forward, FP16 backward",
            peak,
            Verdict.corrected,
            "all three products of a linear layer in FP8; no FP16 (V3 3.3.1)",
            rate / 1e12,
            f"the trace's backward MLP products run at {rate / 1e12:,.0f} TFLOPS, above the 16-bit peak of "
            f"{peak:,.0f}: they are FP8",
        ),
        Claim(
            Topic.fp8,
            "FP8 with dynamic per-tensor scaling",
            1,
            Verdict.corrected,
            "online, but a scale per 1 x 128 tile and 128 x 128 block (V3 3.3.2)",
            shape.dim // FP8_TILE,
            f"a token's {shape.dim:,} channels have {shape.dim // FP8_TILE} scales, one per {FP8_TILE}; "
            f"weights one per {FP8_TILE} x {FP8_TILE} block",
        ),
        Claim(
            Topic.routing,
            "device-limited routing: 83% less all-to-all",
            0.83,
            Verdict.unsupported,
            "no such figure; at most 4 of 8 nodes per token (V3 2.1.2)",
            1 - limited / free,
            f"{limited:.2f} nodes per token instead of {free:.2f}: {1 - limited / free:.0%} less",
        ),
        Claim(
            Topic.mtp,
            "MTP makes training 1.5 times as efficient",
            1.5,
            Verdict.unsupported,
            "no such figure; 85 to 90% of second tokens accepted, 1.8 times the decoding speed (V3 5.4.3)",
            plain / with_mtp,
            f"it costs {with_mtp / plain - 1:.1%} more FLOPs in training",
        ),
        Claim(
            Topic.flops,
            "V3 takes 120 to 150 GFLOP per token",
            150e9,
            Verdict.corrected,
            "250 at 4,096 tokens; 155 is V2 (ISCA table 2)",
            plain,
            f"{plain / 1e9:.2f} G at {LENGTH:,} tokens, causal; 6N is {six_n(config) / 1e9:.0f} G",
        ),
        Claim(
            Topic.flops,
            "a dense 671B model takes 2 TFLOP per token",
            2e12,
            Verdict.corrected,
            "none published; 6 FLOPs per parameter and token",
            6.0 * total_params(config),
            f"6N is {6 * total_params(config) / 1e12:.1f} TFLOP: "
            f"{total_params(config) / active_params(config):.0f} times that of the active parameters",
        ),
        Claim(
            Topic.flops,
            "V3 has 685B parameters",
            685e9,
            Verdict.corrected,
            "671B, and 14B of MTP weights in the release (V3 repository)",
            float(total_params(config)),
            f"{total_params(config) / 1e9:.1f}B, and {mtp_params(config) / 1e9:.1f}B in MTP; the released "
            "files hold embedding and head twice",
        ),
        Claim(
            Topic.flops,
            "V3 activates 37B parameters per token",
            37e9,
            Verdict.confirmed,
            "37B (V3 abstract)",
            float(active),
            f"{active / 1e9:.2f}B, and {(active - embedding) / 1e9:.2f}B without the embedding's look-up",
        ),
        Claim(
            Topic.fp8,
            "FP8 doubles the peak: 2,000 against 1,000 TFLOPS",
            2.0,
            Verdict.confirmed,
            "dense, on the H100 and H800 (data sheet); in training V3 reached 385 (ISCA table 4)",
            (gpu.fp8 or 0.0) / peak,
            f"{gpu.fp8:,.1f} against {peak:,.1f}",
        ),
    ]


def _decoding_claims(config: ModelConfig) -> list[Claim]:
    overhead = flops_per_token(config, LENGTH, mtp=True) / flops_per_token(config, LENGTH)
    low, high = ((1 + accepted) / overhead for accepted in SECOND_TOKENS)
    return [
        Claim(
            Topic.mtp,
            "MTP makes decoding 1.8 times as fast",
            1.8,
            Verdict.confirmed,
            "85 to 90% of second tokens accepted, 1.8 times the tokens per second (V3 5.4.3)",
            (low + high) / 2,
            f"{low:.2f} to {high:.2f} tokens for the FLOPs of one, at this acceptance",
        )
    ]


def _balance_claims(config: ModelConfig) -> list[Claim]:
    weight = config.balance_loss_weight
    return [
        Claim(
            Topic.balance,
            "V3 has no auxiliary loss",
            0.0,
            Verdict.corrected,
            "a sequence-wise one of weight 0.0001 beside the biases (V3 4.2)",
            weight,
            f"weight {weight:g} in the config",
        ),
        Claim(
            Topic.balance,
            "biases balance the experts at no cost in loss",
            0.0,
            Verdict.confirmed,
            "against an auxiliary loss MaxVio 0.72 to 0.04 and perplexity 9.56 to 9.50 (LFB table 2), bits "
            "per byte .727 to .724 and .656 to .652 (V3 table 5)",
            None,
            "for runs to tell: below",
        ),
    ]


def _bubble_claims(share: float) -> list[Claim]:
    plain, dual = (closed_form("1f1b", 16, 1, 1, 1), closed_form("dualpipe", 16, 1, 1, 1))
    return [
        Claim(
            Topic.bubbles,
            "DualPipe leaves no bubbles",
            0.0,
            Verdict.corrected,
            "(PP/2 - 1)(F&B + B - 3W) (V3 table 2); 2.06 of 19.93 s, 10.3% (ISCA table 4)",
            share,
            f"{share:.1%} of a simulated step of V3; in closed form 1F1B has {plain / dual:.1f} times that",
        )
    ]
