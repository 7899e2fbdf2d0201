"""Multi-token prediction: at each depth one more block predicts one more token ahead (V3 section 2.2).

Legend: B rows, S = T + 1 tokens of a row, T positions, U = T - k positions of depth k, D model width.
"""

import torch
from torch import Tensor, nn

from deepseek_mini.config import ModelConfig
from deepseek_mini.model.block import moe_block
from deepseek_mini.model.dtype import Cast
from deepseek_mini.model.norm import RMSNorm

IGNORE = -100
"""Label of a position without a prediction."""


class MtpModule(nn.Module):
    """h^k = Block(M [RMSNorm(Emb(t_{i+k})) ; RMSNorm(h^{k-1}_i)]) (V3 Eq. 21-22).

    The embedding and the output head are the main model's own. Departures from the paper's text: the
    concatenation is [embedding ; hidden], as the released weights expect; h^0 is the main model's state
    before its final norm, and each depth has a final norm of its own (`norm`, released as
    shared_head.norm); the embedding is zero where token i+k belongs to another document than token i.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.enorm = RMSNorm(config.dim)
        self.hnorm = RMSNorm(config.dim)
        self.eh_proj = nn.Linear(2 * config.dim, config.dim, bias=False)
        self.block = moe_block(config)
        self.norm = RMSNorm(config.dim)
        self.cast = Cast()

    def combine(self, embedding_BUD: Tensor, hidden_BUD: Tensor) -> Tensor:
        """The block's input `[B, U, D]`."""
        return self.eh_proj(self.normed(embedding_BUD, hidden_BUD))

    def normed(self, embedding_BUD: Tensor, hidden_BUD: Tensor) -> Tensor:
        """What eh_proj reads."""
        return self.cast(torch.cat((self.enorm(embedding_BUD), self.hnorm(hidden_BUD)), dim=-1))


def same_document(documents_BS: Tensor, offset: int, length: int) -> Tensor:
    """Whether token i + offset is in the document of token i: bool `[B, length]` for i < length."""
    return documents_BS[:, offset : offset + length] == documents_BS[:, :length]


def mtp_targets(tokens_BS: Tensor, documents_BS: Tensor, depth: int) -> Tensor:
    """Labels t_{i+k+1} of depth k, `[B, T - k]`; IGNORE where another document than token i's has them."""
    length = tokens_BS.shape[1] - 1 - depth
    labels_BU = tokens_BS[:, depth + 1 :]
    return labels_BU.masked_fill(~same_document(documents_BS, depth + 1, length), IGNORE)
