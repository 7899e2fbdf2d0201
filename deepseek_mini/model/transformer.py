"""The whole model: embedding, blocks, head, and the multi-token prediction modules behind them.

Legend: B rows, S = T + 1 tokens of a row, T positions, U = T - k positions of depth k, D model width,
P rotated pairs, V vocabulary, L layers with experts (the main model's, then MTP's), E experts.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from deepseek_mini.config import ModelConfig
from deepseek_mini.model.block import Block, dense_block, moe_block
from deepseek_mini.model.experts import RoutedExperts
from deepseek_mini.model.loss import linear_cross_entropy
from deepseek_mini.model.moe import MoE, MoeStats
from deepseek_mini.model.mtp import IGNORE, MtpModule, mtp_targets, same_document
from deepseek_mini.model.norm import RMSNorm
from deepseek_mini.model.rope import rotation_table
from deepseek_mini.model.router import Gate


@dataclass(slots=True)
class Losses:
    """Sums over a micro-batch; the step divides them by its own counts."""

    main_sum: Tensor
    """Cross-entropy of the next token, summed over all positions."""
    mtp_sums: list[Tensor]
    """For each depth the cross-entropy, summed over that depth's valid positions."""
    balance_sum: Tensor
    """Balance loss, summed over rows and layers, without its factor."""
    counts_LE: Tensor
    """int64 tokens per layer and expert."""


class Prediction(NamedTuple):
    """Normed hidden states for the head, and the token that each should predict."""

    hidden_BUD: Tensor
    targets_BU: Tensor
    """int64; IGNORE where there is none."""


class Transformer(nn.Module):
    """DeepSeek-V3. Parameters carry the names of DeepSeek's released inference code."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        table_VD = torch.empty(config.vocab_size, config.dim)  # PyTorch's own start would load its compiler
        self.embed = nn.Embedding.from_pretrained(table_VD, freeze=False)
        self.layers = nn.ModuleList(
            dense_block(config) if i < config.n_dense_layers else moe_block(config)
            for i in range(config.n_layers)
        )
        self.norm = RMSNorm(config.dim)
        self.head = nn.Linear(config.dim, config.vocab_size, bias=False)
        self.mtp = nn.ModuleList(MtpModule(config) for _ in range(config.mtp.depth))
        self.config = config
        self.call_block: Callable = _call

    def forward(self, tokens_BT: Tensor, documents_BT: Tensor | None = None) -> Tensor:
        """Next-token logits `[B, T, V]`. With `documents_BT`, tokens attend within their document only."""
        hidden_BTD, _ = self.trunk(tokens_BT, documents_BT)
        logits_BTV = self.head(self.norm(hidden_BTD))
        return logits_BTV.to(torch.promote_types(logits_BTV.dtype, torch.float32))

    def trunk(self, tokens_BT: Tensor, documents_BT: Tensor | None = None) -> tuple[Tensor, list[MoeStats]]:
        """Hidden states `[B, T, D]` before the final norm, and the balance statistics of each MoE layer."""
        rotation = self._rotation(tokens_BT)
        hidden_BTD, stats = self.embed(tokens_BT), []
        for layer in self.layers:
            hidden_BTD, layer_stats = self.call_block(layer, hidden_BTD, *rotation, documents_BT)
            stats += [layer_stats] if layer_stats else []
        return hidden_BTD, stats

    def predict(
        self, tokens_BS: Tensor, documents_BS: Tensor, document_mask: bool = False
    ) -> tuple[list[Prediction], list[MoeStats]]:
        """What the head has to predict from packed rows: the next token, then each MTP depth's.

        `documents_BS` numbers the documents of each row. MTP never looks across them; attention does,
        as in V3's pre-training, unless `document_mask` is set.
        """
        tokens_BT = tokens_BS[:, :-1]
        attended_BT = documents_BS[:, :-1] if document_mask else None
        hidden_BTD, stats = self.trunk(tokens_BT, attended_BT)
        predictions = [Prediction(self.norm(hidden_BTD), tokens_BS[:, 1:])]
        for depth, module in enumerate(self.mtp_modules(), start=1):
            length = tokens_BT.shape[1] - depth
            inside_BU1 = same_document(documents_BS, depth, length).unsqueeze(-1)
            x_BUD = module.combine(self.embed(tokens_BT[:, depth:]) * inside_BU1, hidden_BTD[:, :length])
            rotation = self._rotation(tokens_BT[:, :length])
            attended_BU = None if attended_BT is None else attended_BT[:, :length]
            hidden_BTD, depth_stats = self.call_block(module.block, x_BUD, *rotation, attended_BU)
            stats.append(depth_stats)
            targets_BU = mtp_targets(tokens_BS, documents_BS, depth)
            predictions.append(Prediction(module.norm(hidden_BTD), targets_BU))
        return predictions, stats

    def losses(self, tokens_BS: Tensor, documents_BS: Tensor, document_mask: bool = False) -> Losses:
        """Summed next-token, multi-token and balance losses of packed rows; arguments as for `predict`."""
        predictions, stats = self.predict(tokens_BS, documents_BS, document_mask)
        main_sum, *mtp_sums = (
            linear_cross_entropy(p.hidden_BUD.flatten(0, 1), self.head.weight, p.targets_BU.flatten(), IGNORE)
            for p in predictions
        )
        balance_sum = torch.stack([main_sum.new_zeros(()), *(s.balance_loss_B.sum() for s in stats)]).sum()
        return Losses(main_sum, mtp_sums, balance_sum, stack_counts(stats))

    def _rotation(self, tokens_BT: Tensor) -> tuple[Tensor, Tensor]:
        rope_dim = self.blocks()[0].attn.rope_dim
        return rotation_table(self.config, rope_dim, tokens_BT.shape[1], tokens_BT.device)

    def mtp_modules(self) -> list[MtpModule]:
        return cast(list[MtpModule], list(self.mtp))

    def blocks(self) -> list[Block]:
        """The main model's blocks, then MTP's."""
        return cast(list[Block], list(self.layers)) + [module.block for module in self.mtp_modules()]

    def gates(self) -> list[Gate]:
        """The gates in the order of `Losses.counts_LE`."""
        return [block.ffn.gate for block in self.blocks() if isinstance(block.ffn, MoE)]


def _call(block: Block, *args: Tensor | None) -> tuple[Tensor, MoeStats | None]:
    return block(*args)


def stack_counts(stats: list[MoeStats]) -> Tensor:
    """int64 `[L, E]`; empty for a model without experts."""
    return torch.stack([s.counts_E for s in stats]) if stats else torch.zeros(0, 0, dtype=torch.int64)


def build_on_meta(config: ModelConfig) -> Transformer:
    """The real model without memory: shapes only."""
    with torch.device("meta"):
        return Transformer(config)


def build_model(config: ModelConfig, device: torch.device, seed: int) -> Transformer:
    """An initialised float32 model on `device`."""
    model = build_on_meta(config)
    model.to_empty(device=device)
    init_parameters(model, config.init_std, seed, config.init_noise)
    return model


@torch.no_grad()
def init_parameters(model: Transformer, std: float, seed: int, noise: float = 0.0) -> None:
    """Initialise everything.

    ==========================  ===========================================
    norm weights                1
    gate biases                 0
    every other parameter       normal(0, `std`): V3 section 4.2 has 0.006
    ==========================  ===========================================

    Each parameter, and each expert of a stack, draws from a generator of its own, seeded by
    hash(seed, name): a change to one part of the model leaves the start of all others as it was. `noise`
    multiplies each drawn number by 1 + noise * normal(0, 1).
    """
    for gate in model.gates():
        if gate.bias is not None:
            gate.bias.zero_()
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(module_name, recurse=False):
            if isinstance(module, RMSNorm):
                parameter.fill_(1.0)
            elif isinstance(module, RoutedExperts):
                for expert, matrix in enumerate(parameter):
                    _fill_normal(matrix, std, seed, f"{name}.{expert}", noise)
            else:
                _fill_normal(parameter, std, seed, name, noise)


def _fill_normal(parameter: Tensor, std: float, seed: int, name: str, noise: float = 0.0) -> None:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
    drawn = torch.empty(parameter.shape).normal_(0.0, std, generator=generator)
    if noise:
        drawn *= 1 + noise * torch.randn(parameter.shape, generator=generator)
    parameter.copy_(drawn)
