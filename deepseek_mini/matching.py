"""Fair ablations: settings that solve for a free width, so that two models cost the same.

They are solved once, when the settings are composed. The resolved config holds the widths and no request, so
that reading it back solves nothing a second time; overrides.txt holds the request.
"""

from dataclasses import replace

from deepseek_mini.checks import require
from deepseek_mini.config import Attention, AttentionMatch, ModelConfig
from deepseek_mini.cost.shape import shape_of


def solve_widths(model: ModelConfig) -> ModelConfig:
    """The model with what `model.moe.granularity` and `model.attention_match` ask for.

    Raises ValueError if no width fits.
    """
    return _match_attention(_split_experts(model))


def _split_experts(model: ModelConfig) -> ModelConfig:
    """Each expert in `granularity` parts, as many times more of them: the same parameters and active FLOPs.

    The fine-grained segmentation of DeepSeekMoE (arXiv:2401.06066 section 3.1), of shared experts too.
    """
    parts = model.moe.granularity
    require(
        model.moe_inter_dim % parts == 0,
        f"model.moe.granularity={parts} does not divide model.moe_inter_dim={model.moe_inter_dim}",
    )
    return replace(
        model,
        moe=replace(model.moe, granularity=1),
        moe_inter_dim=model.moe_inter_dim // parts,
        n_routed_experts=model.n_routed_experts * parts,
        n_activated_experts=model.n_activated_experts * parts,
        n_shared_experts=model.n_shared_experts * parts,
    )


def _match_attention(model: ModelConfig) -> ModelConfig:
    """The head width of mha, gqa or mqa with the weights, or the cache, of this model's MLA.

    The width is even, for RoPE, and the nearest such: weights differ by at most one pair in each head.
    """
    request = model.attention_match
    plain = replace(model, attention_match=AttentionMatch.none)
    if request is AttentionMatch.none or model.attention is Attention.mla:
        return plain
    shape = shape_of(plain)
    if request is AttentionMatch.kv_bytes:
        width = (model.kv_lora_rank + model.qk_rope_head_dim) / (2 * shape.n_kv_heads)
    else:
        latent = shape_of(replace(plain, attention=Attention.mla)).attention_weights
        width = latent / (2 * model.dim * (model.n_heads + shape.n_kv_heads))
    even = 2 * round(width / 2)
    require(
        even >= 2,
        f"model.attention_match={request} leaves heads of {width:.1f} to model.attention={model.attention}; "
        "lower model.n_heads or model.n_kv_heads",
    )
    return replace(plain, v_head_dim=even)
