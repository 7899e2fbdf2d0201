"""Attention of new tokens on a cache, in the two forms that are equal in exact arithmetic.

Legend: B rows, T new tokens, S cached tokens with the new ones, H heads, G kept key-value heads,
Q = H / G, X = T * Q, K key width, V value width, W numbers kept of a token.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from deepseek_mini.model.attention import SelfAttention

QUERIES = 64
"""Tokens whose scores are held at a time."""

Form = Callable[[SelfAttention, Tensor, Tensor, Tensor], Tensor]
"""From a layer, its queries, what it has kept, and what is future to whom, to outputs `[B, T, H, V]`."""


def expanded(attn: SelfAttention, q_BTHK: Tensor, kept_BSW: Tensor, future_BTS: Tensor) -> Tensor:
    """Make every head's keys and values again: for many new tokens, which share that work."""
    k_BSHK, v_BSHV = attn.expand(*kept_BSW.split(attn.kept_split, dim=-1))
    k_BHSK, v_BHSV = k_BSHK.transpose(1, 2).contiguous(), v_BSHV.transpose(1, 2).contiguous()
    queries, futures = q_BTHK.unsqueeze(3).split(QUERIES, dim=1), future_BTS.split(QUERIES, dim=1)
    outs = [_attend(q, k_BHSK, v_BHSV, attn.scale, f) for q, f in zip(queries, futures, strict=True)]
    return torch.cat(outs, dim=1).squeeze(3)


def folded(attn: SelfAttention, q_BTHK: Tensor, kept_BSW: Tensor, future_BTS: Tensor) -> Tensor:
    """Attend to what is kept as it is, MLA absorbing wkv_b into query and output: for few new tokens."""
    k_BSGK, v_BSGV = attn.kept_heads(kept_BSW)
    k_BGSK, v_BGSV = k_BSGK.transpose(1, 2), v_BSGV.transpose(1, 2)
    return attn.unfold_output(_attend(attn.fold_query(q_BTHK), k_BGSK, v_BGSV, attn.scale, future_BTS))


def _attend(q_BTGQK: Tensor, k_BGSK: Tensor, v_BGSV: Tensor, scale: float, future_BTS: Tensor) -> Tensor:
    """softmax(q k^T * scale) v without the future: `[B, T, G, Q, V]`, computed in float32 at least."""
    dtype, wide = q_BTGQK.dtype, torch.promote_types(q_BTGQK.dtype, torch.float32)
    pairs = q_BTGQK.shape[1], q_BTGQK.shape[3]
    q_BGXK = q_BTGQK.transpose(1, 2).flatten(2, 3).to(wide)
    with torch.autocast(q_BTGQK.device.type, enabled=False):
        scores_BGXS = (q_BGXK @ k_BGSK.to(wide).mT).mul_(scale)
        scores_BGXS.unflatten(2, pairs).masked_fill_(future_BTS[:, None, :, None], -torch.inf)
        out_BGXV = scores_BGXS.softmax(-1) @ v_BGSV.to(wide)
    return out_BGXV.unflatten(2, pairs).transpose(1, 2).to(dtype)
