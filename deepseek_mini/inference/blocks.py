"""Blocks that meet a text piece by piece and remember it in a cache.

Legend: B rows, T new tokens, S cached tokens with the new ones, D model width, P rotated pairs,
N = B * T, K experts per token, A = N * K assignments in expert order.
"""

import math
from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from deepseek_mini.config import ModelConfig
from deepseek_mini.inference.attend import Form, expanded, folded
from deepseek_mini.inference.cache import Cache
from deepseek_mini.model.block import Block
from deepseek_mini.model.dtype import compute_dtype
from deepseek_mini.model.experts import RoutedExperts
from deepseek_mini.model.moe import DenseFfn, MoE
from deepseek_mini.model.rope import rotation_table
from deepseek_mini.model.router import Routing

FOLDED = 16
"""Up to so many new tokens per row attend in the folded form."""
VISITING = 16
"""Up to so many tokens in all visit their experts one by one."""
CHUNK = 256
"""Tokens of a long prompt that run at a time."""
STRIDE = 256
"""Cached tokens by which the shapes of decoding grow on a GPU."""


class New(NamedTuple):
    """Where new tokens stand."""

    cos_BTP: Tensor
    sin_BTP: Tensor
    slots_N: Tensor
    """Their places in the cache, counted through the rows."""
    future_BTS: Tensor
    """Which cached tokens each of them must not see."""


class CachedBlocks:
    """A stack of blocks and its cache: the model's trunk, or the block of an MTP module."""

    def __init__(self, blocks: Sequence[Block], config: ModelConfig, n_rows: int, capacity: int) -> None:
        weight = blocks[0].attn.wo.weight
        layers = [block.attn for block in blocks]
        self.blocks = blocks
        self.cache = Cache(layers, n_rows, capacity, compute_dtype(weight), weight.device)
        self._cos_CP, self._sin_CP = rotation_table(config, layers[0].rope_dim, capacity, weight.device)

    def extend(self, x_BTD: Tensor, counts: Sequence[int]) -> Tensor:
        """Hidden states `[B, T, D]` behind new tokens, of which row i has counts[i] and then padding."""
        form = folded if x_BTD.shape[1] <= FOLDED else expanded
        hidden = []
        for start in range(0, x_BTD.shape[1], CHUNK):
            x_BUD = x_BTD[:, start : start + CHUNK]
            hidden.append(self._run(x_BUD, form))
            length = x_BUD.shape[1]
            self.cache.rewind([-min(max(count - start, 0), length) for count in counts])
        return torch.cat(hidden, dim=1)

    def _run(self, x_BTD: Tensor, form: Form) -> Tensor:
        new = self._place(x_BTD.shape[1])
        for layer, block in enumerate(self.blocks):
            x_BTD = x_BTD + self._attend(layer, block.attn_norm(x_BTD), new, form)
            x_BTD = x_BTD + feed_forward(block.ffn, block.ffn_norm(x_BTD))
        return x_BTD

    def _attend(self, layer: int, x_BTD: Tensor, new: New, form: Form) -> Tensor:
        attn = self.blocks[layer].attn
        kept_BTW = torch.cat(attn.compress(x_BTD, new.cos_BTP, new.sin_BTP), dim=-1)
        self.cache.write(layer, kept_BTW, new.slots_N)
        kept_BSW = self.cache.buffers[layer][:, : new.future_BTS.shape[-1]]
        q_BTHK = attn.query(x_BTD, new.cos_BTP, new.sin_BTP)
        return attn.wo(form(attn, q_BTHK, kept_BSW, new.future_BTS).flatten(-2))

    def _place(self, length: int) -> New:
        """Where the next `length` tokens of each row stand."""
        cache, device = self.cache, self._cos_CP.device
        positions_BT = cache.lengths_B.unsqueeze(1) + torch.arange(length, device=device)
        rows_B1 = torch.arange(len(cache.lengths), device=device).unsqueeze(1)
        slots_N = (rows_B1 * cache.capacity + positions_BT).flatten()
        cached_S = torch.arange(self._attended(max(cache.lengths) + length), device=device)
        future_BTS = cached_S > positions_BT.unsqueeze(-1)
        return New(self._cos_CP[positions_BT], self._sin_CP[positions_BT], slots_N, future_BTS)

    def _attended(self, length: int) -> int:
        """How much of the cache is read. On a GPU this grows in strides, so that a captured graph lasts."""
        if self._cos_CP.device.type == "cpu":
            return length
        return min(math.ceil(length / STRIDE) * STRIDE, self.cache.capacity)


def feed_forward(ffn: DenseFfn | MoE, x_BTD: Tensor) -> Tensor:
    """The layer's output. Few tokens on a CPU run without its balance statistics and its sorting.

    Experts with an arithmetic of their own are left to it.
    """
    x_ND = x_BTD.flatten(0, 1)
    if not isinstance(ffn, MoE) or type(ffn.experts) is not RoutedExperts:
        return ffn(x_BTD)[0]
    if len(x_ND) > VISITING or x_ND.device.type != "cpu":
        return ffn(x_BTD)[0]
    y_BTD = visit_experts(ffn.experts, x_ND, ffn.gate(x_ND)).view_as(x_BTD)
    return y_BTD if ffn.shared_experts is None else y_BTD + ffn.shared_experts(x_BTD)


def visit_experts(experts: RoutedExperts, x_ND: Tensor, routing: Routing) -> Tensor:
    """The same as `experts(x_ND, ...)`, one chosen expert after the other: `[N, D]`. The rest is not read."""
    chosen = routing.experts_NK.flatten().tolist()
    order = sorted(range(len(chosen)), key=chosen.__getitem__)
    order_A = torch.tensor(order)
    tokens_A = order_A // routing.experts_NK.shape[1]
    x_AD, parts, start = x_ND.index_select(0, tokens_A), [], 0
    for expert, visits in groupby(order, key=chosen.__getitem__):
        stop = start + len(list(visits))
        x_XD = x_AD[start:stop]
        inner_XI = F.silu(F.linear(x_XD, experts.w1[expert])) * F.linear(x_XD, experts.w3[expert])
        parts.append(F.linear(inner_XI, experts.w2[expert]))
        start = stop
    weights_A1 = routing.weights_NK.flatten().index_select(0, order_A).unsqueeze(1)
    y_AD = torch.cat(parts)
    y_AD *= weights_A1.to(y_AD.dtype)
    return torch.zeros_like(x_ND, dtype=y_AD.dtype).index_add_(0, tokens_A, y_AD)
