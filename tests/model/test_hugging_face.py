"""Our logits against those of Hugging Face transformers' independent DeepSeek-V3."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

from deepseek_mini.config import ModelConfig, MtpConfig
from deepseek_mini.model.attention import MultiHeadLatentAttention
from deepseek_mini.model.experts import Mlp
from deepseek_mini.model.moe import MoE
from deepseek_mini.model.transformer import Transformer
from model.helpers import fill

BASE: dict[str, Any] = {
    "vocab_size": 97, "dim": 32, "inter_dim": 48, "moe_inter_dim": 24, "n_layers": 3, "n_dense_layers": 1,
    "n_heads": 4, "n_routed_experts": 16, "n_shared_experts": 2, "n_activated_experts": 4,
    "n_expert_groups": 4, "n_limited_groups": 2, "q_lora_rank": 12, "kv_lora_rank": 16,
    "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 6,
    "original_seq_len": 64, "max_seq_len": 64, "mtp": MtpConfig(depth=0),
}  # fmt: skip


def peer_config(config: ModelConfig) -> DeepseekV3Config:
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": config.rope_theta}
    if config.max_seq_len > config.original_seq_len:
        rope |= {
            "rope_type": "yarn", "factor": config.rope_factor,
            "original_max_position_embeddings": config.original_seq_len,
            "beta_fast": config.beta_fast, "beta_slow": config.beta_slow,
            "mscale": config.mscale, "mscale_all_dim": config.mscale,
        }  # fmt: skip
    return DeepseekV3Config(
        vocab_size=config.vocab_size, hidden_size=config.dim, intermediate_size=config.inter_dim,
        moe_intermediate_size=config.moe_inter_dim, num_hidden_layers=config.n_layers,
        num_attention_heads=config.n_heads, num_key_value_heads=config.n_heads,
        n_shared_experts=config.n_shared_experts, n_routed_experts=config.n_routed_experts,
        routed_scaling_factor=config.route_scale, kv_lora_rank=config.kv_lora_rank,
        q_lora_rank=config.q_lora_rank or None, qk_rope_head_dim=config.qk_rope_head_dim,
        v_head_dim=config.v_head_dim, qk_nope_head_dim=config.qk_nope_head_dim,
        n_group=config.n_expert_groups, topk_group=config.n_limited_groups,
        num_experts_per_tok=config.n_activated_experts, first_k_dense_replace=config.n_dense_layers,
        norm_topk_prob=True, max_position_embeddings=config.max_seq_len, rope_parameters=rope,
        rope_interleave=True, num_mtp_layers=0,
    )  # fmt: skip


def mlp_weights(mlp: Mlp) -> dict[str, Tensor]:
    names = {"gate_proj": mlp.w1, "up_proj": mlp.w3, "down_proj": mlp.w2}
    return {f"{name}.weight": linear.weight for name, linear in names.items()}


def attention_weights(attn: MultiHeadLatentAttention) -> dict[str, Tensor]:
    names = {
        "wq": "q_proj", "wq_a": "q_a_proj", "q_norm": "q_a_layernorm", "wq_b": "q_b_proj",
        "wkv_a": "kv_a_proj_with_mqa", "kv_norm": "kv_a_layernorm", "wkv_b": "kv_b_proj", "wo": "o_proj",
    }  # fmt: skip
    return {f"{names[name]}.weight": module.weight for name, module in attn.named_children()}


def moe_weights(moe: MoE) -> dict[str, Tensor]:
    shared = {f"shared_experts.{name}": weight for name, weight in mlp_weights(moe.shared_experts).items()}
    return shared | {
        "gate.weight": moe.gate.weight,
        "gate.e_score_correction_bias": moe.gate.bias,
        "experts.gate_up_proj": torch.cat([moe.experts.w1, moe.experts.w3], 1),
        "experts.down_proj": moe.experts.w2,
    }


def peer_weights(model: Transformer) -> dict[str, Tensor]:
    weights = {
        "model.embed_tokens.weight": model.embed.weight,
        "model.norm.weight": model.norm.weight,
        "lm_head.weight": model.head.weight,
    }
    for i, layer in enumerate(model.layers):
        ffn = moe_weights(layer.ffn) if isinstance(layer.ffn, MoE) else mlp_weights(layer.ffn)
        parts = {
            "self_attn": attention_weights(layer.attn),
            "mlp": ffn,
            "input_layernorm": {"weight": layer.attn_norm.weight},
            "post_attention_layernorm": {"weight": layer.ffn_norm.weight},
        }
        for part, tensors in parts.items():
            weights |= {f"model.layers.{i}.{part}.{name}": tensor for name, tensor in tensors.items()}
    return weights


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="query latent"),
        pytest.param({"q_lora_rank": 0}, id="direct query"),
        pytest.param({"max_seq_len": 256, "rope_factor": 4.0}, id="yarn"),
    ],
)
def test_logits_and_gradients_agree_with_hugging_face(changes: dict) -> None:
    config = ModelConfig(**(BASE | changes))
    model = Transformer(config)
    fill(model, 0, std=0.2)
    peer = DeepseekV3ForCausalLM(peer_config(config)).eval()
    peer.load_state_dict(peer_weights(model))
    tokens_BT = torch.randint(97, (2, 40), generator=torch.Generator().manual_seed(0))

    logits_BTV, expected_BTV = model(tokens_BT), peer(tokens_BT).logits
    assert ((logits_BTV - expected_BTV).norm() / expected_BTV.norm()) < 1e-4
    torch.testing.assert_close(logits_BTV, expected_BTV, rtol=1e-4, atol=1e-4 * expected_BTV.std().item())

    logits_BTV.square().mean().backward()
    expected_BTV.square().mean().backward()
    grads, peer_grads = model.embed.weight.grad, peer.model.embed_tokens.weight.grad
    assert ((grads - peer_grads).norm() / peer_grads.norm()) < 1e-4
