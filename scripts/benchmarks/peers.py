"""transformers' DeepseekV3 in our shapes."""

from typing import Any

from torch import nn

from deepseek_mini.compose import ConfigError
from deepseek_mini.config import GroupScore, ModelConfig
from deepseek_mini.model.transformer import build_on_meta


def require_routing_of_peers(config: ModelConfig) -> None:
    """Raises ConfigError for the choice of groups that neither torchtitan nor transformers has."""
    if config.group_score is not GroupScore.top2 and config.n_expert_groups > 1:
        raise ConfigError("the peers have model.group_score=top2 only; set it, or model.n_expert_groups=1")


def peer_config(config: ModelConfig) -> Any:
    """DeepseekV3Config of the same shape."""
    from transformers import DeepseekV3Config

    return DeepseekV3Config(
        vocab_size=config.vocab_size,
        hidden_size=config.dim,
        intermediate_size=config.inter_dim,
        moe_intermediate_size=config.moe_inter_dim,
        num_hidden_layers=config.n_layers,
        first_k_dense_replace=config.n_dense_layers,
        num_attention_heads=config.n_heads,
        num_key_value_heads=config.n_heads,
        n_routed_experts=config.n_routed_experts,
        n_shared_experts=config.n_shared_experts,
        num_experts_per_tok=config.n_activated_experts,
        n_group=config.n_expert_groups,
        topk_group=config.n_limited_groups,
        routed_scaling_factor=config.route_scale,
        q_lora_rank=config.q_lora_rank or None,
        kv_lora_rank=config.kv_lora_rank,
        qk_nope_head_dim=config.qk_nope_head_dim,
        qk_rope_head_dim=config.qk_rope_head_dim,
        v_head_dim=config.v_head_dim,
        max_position_embeddings=config.max_seq_len,
        initializer_range=config.init_std,
        use_cache=False,
    )


def peer_model(config: ModelConfig, experts: str) -> nn.Module:
    """DeepseekV3ForCausalLM of the same shape. Raises RuntimeError if it has other parameters than ours."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(peer_config(config), experts_implementation=experts)
    ours = sum(p.numel() for p in build_on_meta(config).parameters())
    theirs = sum(p.numel() for p in model.parameters())
    if ours != theirs:
        raise RuntimeError(f"the peer has {theirs} parameters, we have {ours}: not the same shape")
    return model
