"""Causal attention with key and value widths that differ.

Legend: B batch, T positions, H heads, K key width, V value width, X = V or K, Q queries of one chunk,
S keys so far.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 64
"""Queries per chunk on a CPU: small enough for the scores to stay in cache."""


class Heads(NamedTuple):
    """Queries, keys and values in the layout of the attention kernels: heads before positions."""

    q_BHTK: Tensor
    k_BHTK: Tensor
    v_BHTX: Tensor
    """On a CPU as wide as the values are, elsewhere as wide as the keys if these are wider."""


def lay_out(q_BTHK: Tensor, k_BTHK: Tensor, v_BTHV: Tensor) -> Heads:
    """What the device's kernel reads, and keeps as it is for its backward pass."""
    heads = Heads(*(x.transpose(1, 2) for x in (q_BTHK, k_BTHK, v_BTHV)))
    return _widen(heads) if q_BTHK.device.type == "cpu" else _pad(heads)


def _widen(heads: Heads) -> Heads:
    """Contiguous and float32 at least, in which scores and sums are computed whatever the inputs are."""
    wide = torch.promote_types(heads.q_BHTK.dtype, torch.float32)
    return Heads(*(x.to(wide).contiguous() for x in heads))


def _pad(heads: Heads) -> Heads:
    """Values as wide as the keys at least, which PyTorch's flash kernels require."""
    padding = heads.k_BHTK.shape[-1] - heads.v_BHTX.shape[-1]
    return heads._replace(v_BHTX=F.pad(heads.v_BHTX, (0, padding))) if padding > 0 else heads


def causal_attention(heads: Heads, scale: float, documents_BT: Tensor | None = None) -> Tensor:
    """softmax(q k^T * scale) v over the positions up to each query's own; `[B, H, T, X]`.

    With `documents_BT` (a document number per position) a query also sees its own document only.
    """
    attend = _ChunkedAttention.apply if heads.q_BHTK.device.type == "cpu" else _fused_attention
    return attend(*heads, scale, documents_BT)


def _fused_attention(
    q_BHTK: Tensor, k_BHTK: Tensor, v_BHTX: Tensor, scale: float, documents_BT: Tensor | None
) -> Tensor:
    """PyTorch's kernel."""
    if documents_BT is None:
        return F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTX, is_causal=True, scale=scale)
    same_B1TT = (documents_BT[:, :, None] == documents_BT[:, None, :]).tril()[:, None]
    return F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTX, attn_mask=same_B1TT, scale=scale)


class _ChunkedAttention(torch.autograd.Function):
    """Chunks of queries against the keys before them: no work above the diagonal, no T x T matrix kept.

    The backward pass computes each chunk's probabilities again from the saved log-sum-exp.
    """

    @staticmethod
    def forward(ctx, q, k, v, scale, documents_BT):
        out_BHTV = torch.empty_like(v)
        lse_BHT1 = q.new_empty(*q.shape[:3], 1)
        for chunk in _chunks(q):
            scores_BHQS = _masked_scores(q, k, scale, documents_BT, chunk)
            largest_BHQ1 = scores_BHQS.amax(-1, keepdim=True)
            exps_BHQS = scores_BHQS.sub_(largest_BHQ1).exp_()
            sums_BHQ1 = exps_BHQS.sum(-1, keepdim=True)
            out_BHTV[:, :, chunk] = (exps_BHQS @ v[:, :, : chunk.stop]).div_(sums_BHQ1)
            lse_BHT1[:, :, chunk] = largest_BHQ1 + sums_BHQ1.log()
        ctx.save_for_backward(q, k, v, out_BHTV, lse_BHT1)
        ctx.scale, ctx.documents_BT = scale, documents_BT
        return out_BHTV

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d_out):
        q, k, v, out_BHTV, lse_BHT1 = ctx.saved_tensors
        d_out = d_out.contiguous()
        d_q, d_k, d_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        delta_BHT1 = (d_out * out_BHTV).sum(-1, keepdim=True)
        for chunk in _chunks(q):
            past = slice(0, chunk.stop)
            scores_BHQS = _masked_scores(q, k, ctx.scale, ctx.documents_BT, chunk)
            probs_BHQS = scores_BHQS.sub_(lse_BHT1[:, :, chunk]).exp_()
            d_v[:, :, past] += probs_BHQS.mT @ d_out[:, :, chunk]
            d_probs_BHQS = d_out[:, :, chunk] @ v[:, :, past].mT
            d_scores_BHQS = d_probs_BHQS.sub_(delta_BHT1[:, :, chunk]).mul_(probs_BHQS).mul_(ctx.scale)
            d_q[:, :, chunk] = d_scores_BHQS @ k[:, :, past]
            d_k[:, :, past] += d_scores_BHQS.mT @ q[:, :, chunk]
        return d_q, d_k, d_v, None, None


def _chunks(q_BHTK: Tensor) -> list[slice]:
    length = q_BHTK.shape[2]
    return [slice(start, min(start + CHUNK, length)) for start in range(0, length, CHUNK)]


def _masked_scores(
    q_BHTK: Tensor, k_BHTK: Tensor, scale: float, documents_BT: Tensor | None, chunk: slice
) -> Tensor:
    """Scaled scores of a chunk of queries; -inf above the diagonal and across documents."""
    scores_BHQS = (q_BHTK[:, :, chunk] @ k_BHTK[:, :, : chunk.stop].mT).mul_(scale)
    size = chunk.stop - chunk.start
    future_QQ = torch.ones(size, size, dtype=torch.bool, device=scores_BHQS.device).triu(1)
    scores_BHQS[..., chunk].masked_fill_(future_QQ, -torch.inf)
    if documents_BT is not None:
        other_BQS = documents_BT[:, chunk, None] != documents_BT[:, None, : chunk.stop]
        scores_BHQS.masked_fill_(other_BQS[:, None], -torch.inf)
    return scores_BHQS
