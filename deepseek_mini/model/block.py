"""A transformer block: pre-norm attention and pre-norm feed-forward, each with its residual."""

from torch import Tensor, nn

from deepseek_mini.config import ModelConfig
from deepseek_mini.model.attention import build_attention
from deepseek_mini.model.moe import DenseFfn, MoE, MoeStats
from deepseek_mini.model.norm import RMSNorm


class Block(nn.Module):
    """x += attn(norm(x)); x += ffn(norm(x)). `ffn` is a DenseFfn or an MoE."""

    def __init__(self, config: ModelConfig, ffn: DenseFfn | MoE) -> None:
        super().__init__()
        self.attn_norm = RMSNorm(config.dim)
        self.attn = build_attention(config)
        self.ffn_norm = RMSNorm(config.dim)
        self.ffn = ffn

    def forward(
        self, x_BTD: Tensor, cos_TP: Tensor, sin_TP: Tensor, documents_BT: Tensor | None = None
    ) -> tuple[Tensor, MoeStats | None]:
        x_BTD = x_BTD + self.attn(self.attn_norm(x_BTD), cos_TP, sin_TP, documents_BT)
        y_BTD, stats = self.ffn(self.ffn_norm(x_BTD))
        return x_BTD + y_BTD, stats


def dense_block(config: ModelConfig) -> Block:
    return Block(config, DenseFfn(config.dim, config.inter_dim))


def moe_block(config: ModelConfig) -> Block:
    return Block(config, MoE(config))
