"""Fair ablations: settings that solve for widths or tokens, so that runs cost the same or are in proportion.

They are solved once, when the settings are composed. The resolved config holds what was solved and no
request, so that reading it back solves nothing a second time; overrides.txt holds the request.
"""

from dataclasses import replace

from deepseek_mini.checks import require
from deepseek_mini.config import Attention, AttentionMatch, Config, ModelConfig, TrainerConfig
from deepseek_mini.cost.flops import flops_per_token
from deepseek_mini.cost.shape import shape_of

WIDTHS = (
    *("dim", "inter_dim", "moe_inter_dim", "q_lora_rank", "kv_lora_rank"),
    *("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"),
)

WORST_MATCH = 0.05
"""By such a share may what is solved for miss what was asked for."""


def solve(config: Config) -> Config:
    """What `scale`, `model.moe.granularity`, `model.attention_match` and `trainer.max_flops` ask for.

    Raises ValueError if no width fits.
    """
    model = _match_attention(_split_experts(_scale_widths(config.model, config.scale)))
    trainer = _scale_tokens(config.trainer, config.scale)
    if trainer.max_flops is not None:
        each = flops_per_token(model, config.data.sequence_length, mtp=model.mtp.depth > 0)
        trainer = replace(trainer, max_flops=None, max_tokens=max(round(trainer.max_flops / each), 1))
    return replace(config, model=model, trainer=trainer, scale=1.0)


def _scale_widths(model: ModelConfig, scale: float) -> ModelConfig:
    """All widths times `scale`. Numbers of layers, heads and experts stay: parameters grow as its square."""
    widths = {key: getattr(model, key) * scale for key in WIDTHS}
    for key, width in widths.items():
        whole = abs(width - round(width)) < 1e-6
        require(whole, f"scale={scale:g} makes model.{key}={width:g}, no whole number; take another scale")
    return replace(model, **{key: round(width) for key, width in widths.items()})


def _scale_tokens(trainer: TrainerConfig, scale: float) -> TrainerConfig:
    """Steps or tokens in proportion to the parameters; a budget of FLOPs stays as it is."""
    amounts = {key: getattr(trainer, key) for key in ("max_steps", "max_tokens")}
    scaled = {key: n if n is None else max(round(n * scale**2), 1) for key, n in amounts.items()}
    return replace(trainer, **scaled)


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

    The width is even, for RoPE, and the nearest such: weights differ by at most one pair in each head. Where
    heads are so narrow that a pair is too much to call it a match, it is refused.
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
    require(
        abs(even - width) <= WORST_MATCH * width,
        f"model.attention_match={request} asks model.attention={model.attention} for heads of {width:.2f}; "
        f"RoPE needs an even width, and {even} misses by {abs(even / width - 1):.0%}; change model.n_heads, "
        "model.n_kv_heads or model.kv_lora_rank",
    )
    return replace(plain, v_head_dim=even)
