"""Multi-head latent attention, and the multi-head, grouped-query and multi-query baselines.

Legend: B batch, T positions, D model width, H heads, G key-value heads, K key width per head
(nope + rope), V value width per head, R rotated width, P = R / 2, C query latent, L key-value latent.

             x_BTD
        +------+---------------------+
      wq_a                         wkv_a
        |                     +------+-------+
     q_norm                kv_norm           |
        |   (C)               |   (L)        |  (R, one for all heads)
      wq_b                  wkv_b           RoPE
     +--+---+              +--+---+          |
  q_nope  q_rope        k_nope    v          |
     |     RoPE            |      |          |
     +--+---+              +------|----+-----+
      q_BTHK                      |  k_BTHK
        +--------- attention -----+----+
                       |
                      wo
"""

import torch
from torch import Tensor, nn

from deepseek_mini.config import Attention, ModelConfig
from deepseek_mini.model.causal import causal_attention
from deepseek_mini.model.norm import RMSNorm
from deepseek_mini.model.rope import apply_rope, softmax_scale


class MultiHeadLatentAttention(nn.Module):
    """MLA in its expanded form, as used for training (V3 Eq. 1-11)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.rope_dim = config.qk_rope_head_dim
        self.n_heads = config.n_heads
        self.kv_split = [config.kv_lora_rank, config.qk_rope_head_dim]
        self.q_head_split = [config.qk_nope_head_dim, config.qk_rope_head_dim]
        self.kv_head_split = [config.qk_nope_head_dim, config.v_head_dim]
        self.scale = softmax_scale(config, config.qk_head_dim)
        self._add_query(config)
        self.wkv_a = nn.Linear(config.dim, sum(self.kv_split), bias=False)
        self.kv_norm = RMSNorm(config.kv_lora_rank)
        self.wkv_b = nn.Linear(config.kv_lora_rank, config.n_heads * sum(self.kv_head_split), bias=False)
        self.wo = nn.Linear(config.n_heads * config.v_head_dim, config.dim, bias=False)

    def _add_query(self, config: ModelConfig) -> None:
        self.wq_a = nn.Linear(config.dim, config.q_lora_rank, bias=False)
        self.q_norm = RMSNorm(config.q_lora_rank)
        self.wq_b = nn.Linear(config.q_lora_rank, config.n_heads * config.qk_head_dim, bias=False)

    def _query(self, x_BTD: Tensor) -> Tensor:
        return self.wq_b(self.q_norm(self.wq_a(x_BTD)))

    def forward(
        self, x_BTD: Tensor, cos_TP: Tensor, sin_TP: Tensor, documents_BT: Tensor | None = None
    ) -> Tensor:
        q_BTHK = self._query(x_BTD).unflatten(-1, (self.n_heads, -1))
        q_nope_BTHN, q_rope_BTHR = q_BTHK.split(self.q_head_split, dim=-1)
        latent_BTL, k_rope_BTR = self.wkv_a(x_BTD).split(self.kv_split, dim=-1)
        kv_BTHX = self.wkv_b(self.kv_norm(latent_BTL)).unflatten(-1, (self.n_heads, -1))
        k_nope_BTHN, v_BTHV = kv_BTHX.split(self.kv_head_split, dim=-1)

        q_rope_BTHR = apply_rope(q_rope_BTHR, cos_TP, sin_TP)
        k_rope_BT1R = apply_rope(k_rope_BTR.unsqueeze(-2), cos_TP, sin_TP)
        q_BTHK = torch.cat((q_nope_BTHN, q_rope_BTHR), dim=-1)
        k_BTHK = torch.cat((k_nope_BTHN, k_rope_BT1R.expand(-1, -1, self.n_heads, -1)), dim=-1)
        out_BTHV = causal_attention(q_BTHK, k_BTHK, v_BTHV, self.scale, documents_BT)
        return self.wo(out_BTHV.flatten(-2))


class DirectQueryLatentAttention(MultiHeadLatentAttention):
    """MLA whose query is projected directly, without a latent (`q_lora_rank=0`, as in V2-Lite)."""

    def _add_query(self, config: ModelConfig) -> None:
        self.wq = nn.Linear(config.dim, config.n_heads * config.qk_head_dim, bias=False)

    def _query(self, x_BTD: Tensor) -> Tensor:
        return self.wq(x_BTD)


class GroupedQueryAttention(nn.Module):
    """The baselines: heads as wide as MLA's values, RoPE over the whole head, shared key-value heads."""

    def __init__(self, config: ModelConfig, n_kv_heads: int) -> None:
        super().__init__()
        head_dim = config.v_head_dim
        self.rope_dim = head_dim
        self.n_heads, self.n_kv_heads = config.n_heads, n_kv_heads
        self.scale = softmax_scale(config, head_dim)
        self.wq = nn.Linear(config.dim, config.n_heads * head_dim, bias=False)
        self.wk = nn.Linear(config.dim, n_kv_heads * head_dim, bias=False)
        self.wv = nn.Linear(config.dim, n_kv_heads * head_dim, bias=False)
        self.wo = nn.Linear(config.n_heads * head_dim, config.dim, bias=False)

    def forward(
        self, x_BTD: Tensor, cos_TP: Tensor, sin_TP: Tensor, documents_BT: Tensor | None = None
    ) -> Tensor:
        q_BTHK = apply_rope(self.wq(x_BTD).unflatten(-1, (self.n_heads, -1)), cos_TP, sin_TP)
        k_BTGK = apply_rope(self.wk(x_BTD).unflatten(-1, (self.n_kv_heads, -1)), cos_TP, sin_TP)
        v_BTGV = self.wv(x_BTD).unflatten(-1, (self.n_kv_heads, -1))
        queries_per_key = self.n_heads // self.n_kv_heads
        k_BTHK = k_BTGK.repeat_interleave(queries_per_key, dim=-2)
        v_BTHV = v_BTGV.repeat_interleave(queries_per_key, dim=-2)
        out_BTHV = causal_attention(q_BTHK, k_BTHK, v_BTHV, self.scale, documents_BT)
        return self.wo(out_BTHV.flatten(-2))


def build_attention(config: ModelConfig) -> MultiHeadLatentAttention | GroupedQueryAttention:
    """The attention that `model.attention` names."""
    if config.attention is Attention.mla:
        latent = MultiHeadLatentAttention if config.q_lora_rank else DirectQueryLatentAttention
        return latent(config)
    n_kv_heads = {Attention.mha: config.n_heads, Attention.gqa: config.n_kv_heads, Attention.mqa: 1}
    return GroupedQueryAttention(config, n_kv_heads[config.attention])
