"""Multi-head latent attention, and the multi-head, grouped-query and multi-query baselines.

Legend: B batch, T positions, D model width, H heads, G key-value heads, K key width per head
(nope + rope), N its width without a position, V value width per head, R rotated width, P = R / 2, C query
latent, L key-value latent, W what a cache keeps of a token, X and Y its two parts.

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
from deepseek_mini.model.causal import Heads, causal_attention, lay_out
from deepseek_mini.model.dtype import Cast
from deepseek_mini.model.norm import RMSNorm
from deepseek_mini.model.rope import apply_rope, softmax_scale


class SelfAttention(nn.Module):
    """What all kinds share. A kind says what its queries are and what is kept of each token, in two forms.

    *Expanded*, every head has keys and values of its own: for training and for long prompts. *Folded*, the
    queries meet what a cache keeps as it is: for decoding. That is MLA's absorbed form (V2 appendix C), and
    a baseline's query heads beside each other on the key-value head that they share.
    """

    rope_dim: int
    n_heads: int
    v_dim: int
    scale: float
    kept_split: list[int]
    """Widths of the two parts of what is kept of a token."""
    wo: nn.Linear

    def __init__(self) -> None:
        super().__init__()
        self.cast = Cast()

    def forward(
        self, x_BTD: Tensor, cos_TP: Tensor, sin_TP: Tensor, documents_BT: Tensor | None = None
    ) -> Tensor:
        x_BTD = self.cast(x_BTD)
        kept = self.compress(x_BTD, cos_TP, sin_TP)
        heads = self.heads(self.down_query(x_BTD), *kept, cos_TP, sin_TP)
        out_BHTX = causal_attention(heads, self.scale, documents_BT)
        out_BTHV = out_BHTX[..., : self.v_dim].transpose(1, 2)
        return self.wo(out_BTHV.to(x_BTD.dtype).flatten(-2))

    def heads(
        self, latent_BTC: Tensor, first_BTX: Tensor, second_BTY: Tensor, cos_TP: Tensor, sin_TP: Tensor
    ) -> Heads:
        """All that attention reads: for MLA its up-projections from the latents."""
        q_BTHK = self.up_query(latent_BTC, cos_TP, sin_TP)
        return lay_out(q_BTHK, *self.expand(first_BTX, second_BTY))

    def query(self, x_BTD: Tensor, cos_TP: Tensor, sin_TP: Tensor) -> Tensor:
        """Queries `[B, T, H, K]`, turned by their positions."""
        return self.up_query(self.down_query(x_BTD), cos_TP, sin_TP)

    def down_query(self, x_BTD: Tensor) -> Tensor:
        """The query latent; where there is none, queries not turned yet."""
        raise NotImplementedError

    def up_query(self, latent_BTC: Tensor, cos_TP: Tensor, sin_TP: Tensor) -> Tensor:
        """Queries `[B, T, H, K]` from what `down_query` gives."""
        raise NotImplementedError

    def compress(self, x_BTD: Tensor, cos_TP: Tensor, sin_TP: Tensor) -> tuple[Tensor, Tensor]:
        """All that later tokens need of these, in two parts `[B, T, width]`."""
        raise NotImplementedError

    def expand(self, first_BTX: Tensor, second_BTY: Tensor) -> tuple[Tensor, Tensor]:
        """Keys `[B, T, H, K]` and values `[B, T, H, V]` of every head, from the two parts."""
        raise NotImplementedError

    def fold_query(self, q_BTHK: Tensor) -> Tensor:
        """Queries on the kept keys: `[B, T, G, H / G, width of a kept key]`."""
        raise NotImplementedError

    def kept_heads(self, kept_BTW: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values `[B, T, G, width]`: views of the two parts, side by side in `kept_BTW`."""
        raise NotImplementedError

    def unfold_output(self, out_BTGQX: Tensor) -> Tensor:
        """Outputs `[B, T, H, V]` from the kept values that the folded queries found."""
        raise NotImplementedError


class MultiHeadLatentAttention(SelfAttention):
    """MLA (V3 Eq. 1-11). It keeps the normed latent and the turned key: L + R numbers for all heads."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.rope_dim = config.qk_rope_head_dim
        self.n_heads, self.v_dim = config.n_heads, config.v_head_dim
        self.kept_split = [config.kv_lora_rank, config.qk_rope_head_dim]
        self.q_head_split = [config.qk_nope_head_dim, config.qk_rope_head_dim]
        self.kv_head_split = [config.qk_nope_head_dim, config.v_head_dim]
        self.scale = softmax_scale(config, config.qk_head_dim)
        self._add_query(config)
        self.wkv_a = nn.Linear(config.dim, sum(self.kept_split), bias=False)
        self.kv_norm = RMSNorm(config.kv_lora_rank)
        self.wkv_b = nn.Linear(config.kv_lora_rank, config.n_heads * sum(self.kv_head_split), bias=False)
        self.wo = nn.Linear(config.n_heads * config.v_head_dim, config.dim, bias=False)

    def _add_query(self, config: ModelConfig) -> None:
        self.wq_a = nn.Linear(config.dim, config.q_lora_rank, bias=False)
        self.q_norm = RMSNorm(config.q_lora_rank)
        self.wq_b = nn.Linear(config.q_lora_rank, config.n_heads * config.qk_head_dim, bias=False)

    def down_query(self, x_BTD: Tensor) -> Tensor:
        return self.q_norm(self.wq_a(x_BTD))

    def up_query(self, latent_BTC: Tensor, cos_TP: Tensor, sin_TP: Tensor) -> Tensor:
        return self._turn(self.wq_b(latent_BTC), cos_TP, sin_TP)

    def _turn(self, q_BTX: Tensor, cos_TP: Tensor, sin_TP: Tensor) -> Tensor:
        q_BTHK = q_BTX.unflatten(-1, (self.n_heads, -1))
        q_nope_BTHN, q_rope_BTHR = q_BTHK.split(self.q_head_split, dim=-1)
        return torch.cat((q_nope_BTHN, apply_rope(q_rope_BTHR, cos_TP, sin_TP)), dim=-1)

    def compress(self, x_BTD: Tensor, cos_TP: Tensor, sin_TP: Tensor) -> tuple[Tensor, Tensor]:
        latent_BTL, k_rope_BTR = self.wkv_a(x_BTD).split(self.kept_split, dim=-1)
        k_rope_BT1R = apply_rope(k_rope_BTR.unsqueeze(-2), cos_TP, sin_TP)
        return self.kv_norm(latent_BTL), k_rope_BT1R.squeeze(-2)

    def expand(self, latent_BTL: Tensor, k_rope_BTR: Tensor) -> tuple[Tensor, Tensor]:
        kv_BTHX = self.wkv_b(latent_BTL).unflatten(-1, (self.n_heads, -1))
        k_nope_BTHN, v_BTHV = kv_BTHX.split(self.kv_head_split, dim=-1)
        k_rope_BTHR = k_rope_BTR.unsqueeze(-2).expand(-1, -1, self.n_heads, -1)
        return torch.cat((k_nope_BTHN, k_rope_BTHR), dim=-1), v_BTHV

    def fold_query(self, q_BTHK: Tensor) -> Tensor:
        q_nope_BTHN, q_rope_BTHR = q_BTHK.split(self.q_head_split, dim=-1)
        up_HNL, _ = self._up_projections()
        q_latent_BTHL = torch.einsum("bthn,hnl->bthl", q_nope_BTHN, up_HNL)
        return torch.cat((q_latent_BTHL, q_rope_BTHR), dim=-1).unsqueeze(2)

    def kept_heads(self, kept_BTW: Tensor) -> tuple[Tensor, Tensor]:
        kept_BT1W = kept_BTW.unsqueeze(2)
        return kept_BT1W, kept_BT1W[..., : self.kept_split[0]]

    def unfold_output(self, out_BT1HL: Tensor) -> Tensor:
        _, up_HVL = self._up_projections()
        return torch.einsum("bthl,hvl->bthv", out_BT1HL.squeeze(2), up_HVL)

    def _up_projections(self) -> tuple[Tensor, Tensor]:
        """W_UK `[H, N, L]` and W_UV `[H, V, L]`."""
        up_HXL = self.wkv_b.weight.unflatten(0, (self.n_heads, -1))
        up_HNL, up_HVL = up_HXL.split(self.kv_head_split, dim=1)
        return up_HNL, up_HVL


class DirectQueryLatentAttention(MultiHeadLatentAttention):
    """MLA whose query is projected directly, without a latent (`q_lora_rank=0`, as in V2-Lite)."""

    def _add_query(self, config: ModelConfig) -> None:
        self.wq = nn.Linear(config.dim, config.n_heads * config.qk_head_dim, bias=False)

    def down_query(self, x_BTD: Tensor) -> Tensor:
        return self.wq(x_BTD)

    def up_query(self, q_BTX: Tensor, cos_TP: Tensor, sin_TP: Tensor) -> Tensor:
        return self._turn(q_BTX, cos_TP, sin_TP)


class GroupedQueryAttention(SelfAttention):
    """The baselines: heads as wide as MLA's values, RoPE over the whole head, shared key-value heads."""

    def __init__(self, config: ModelConfig, n_kv_heads: int) -> None:
        super().__init__()
        head_dim = config.v_head_dim
        self.rope_dim = self.v_dim = head_dim
        self.n_heads, self.n_kv_heads = config.n_heads, n_kv_heads
        self.kept_split = [n_kv_heads * head_dim, n_kv_heads * head_dim]
        self.scale = softmax_scale(config, head_dim)
        self.wq = nn.Linear(config.dim, config.n_heads * head_dim, bias=False)
        self.wk = nn.Linear(config.dim, n_kv_heads * head_dim, bias=False)
        self.wv = nn.Linear(config.dim, n_kv_heads * head_dim, bias=False)
        self.wo = nn.Linear(config.n_heads * head_dim, config.dim, bias=False)

    def down_query(self, x_BTD: Tensor) -> Tensor:
        return self.wq(x_BTD)

    def up_query(self, q_BTX: Tensor, cos_TP: Tensor, sin_TP: Tensor) -> Tensor:
        return apply_rope(q_BTX.unflatten(-1, (self.n_heads, -1)), cos_TP, sin_TP)

    def compress(self, x_BTD: Tensor, cos_TP: Tensor, sin_TP: Tensor) -> tuple[Tensor, Tensor]:
        k_BTGK = apply_rope(self.wk(x_BTD).unflatten(-1, (self.n_kv_heads, -1)), cos_TP, sin_TP)
        return k_BTGK.flatten(-2), self.wv(x_BTD)

    def expand(self, k_BTX: Tensor, v_BTY: Tensor) -> tuple[Tensor, Tensor]:
        k_BTGK, v_BTGV = (part.unflatten(-1, (self.n_kv_heads, -1)) for part in (k_BTX, v_BTY))
        queries_per_key = self.n_heads // self.n_kv_heads
        k_BTHK = k_BTGK.repeat_interleave(queries_per_key, dim=-2)
        v_BTHV = v_BTGV.repeat_interleave(queries_per_key, dim=-2)
        return k_BTHK, v_BTHV

    def fold_query(self, q_BTHK: Tensor) -> Tensor:
        return q_BTHK.unflatten(2, (self.n_kv_heads, -1))

    def kept_heads(self, kept_BTW: Tensor) -> tuple[Tensor, Tensor]:
        k_BTX, v_BTY = kept_BTW.split(self.kept_split, dim=-1)
        return k_BTX.unflatten(-1, (self.n_kv_heads, -1)), v_BTY.unflatten(-1, (self.n_kv_heads, -1))

    def unfold_output(self, out_BTGQV: Tensor) -> Tensor:
        return out_BTGQV.flatten(2, 3)


def build_attention(config: ModelConfig) -> SelfAttention:
    """The attention that `model.attention` names."""
    if config.attention is Attention.mla:
        latent = MultiHeadLatentAttention if config.q_lora_rank else DirectQueryLatentAttention
        return latent(config)
    n_kv_heads = {Attention.mha: config.n_heads, Attention.gqa: config.n_kv_heads, Attention.mqa: 1}
    return GroupedQueryAttention(config, n_kv_heads[config.attention])
