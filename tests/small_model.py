"""A model config for tests: every part of V3, a few thousand parameters."""

from deepseek_mini.config import Balance, ModelConfig, MoeConfig, MtpConfig


def small_model_config(depth: int = 1, balance: Balance = Balance.bias) -> ModelConfig:
    return ModelConfig(
        vocab_size=61,
        dim=24,
        inter_dim=32,
        moe_inter_dim=8,
        n_layers=3,
        n_dense_layers=1,
        n_heads=2,
        n_routed_experts=8,
        n_activated_experts=3,
        n_expert_groups=4,
        n_limited_groups=2,
        q_lora_rank=12,
        kv_lora_rank=8,
        qk_nope_head_dim=8,
        qk_rope_head_dim=4,
        v_head_dim=8,
        init_std=0.1,
        mtp=MtpConfig(depth=depth),
        moe=MoeConfig(balance=balance, sequence_loss_weight=0.01),
    )
