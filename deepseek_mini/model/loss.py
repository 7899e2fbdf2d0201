"""Cross-entropy of a linear head that never holds the logits of all tokens at once.

Legend: N tokens, C tokens of one chunk, D model width, V vocabulary.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from deepseek_mini.model.dtype import compute_dtype

CHUNK_ELEMENTS = 1 << 22
"""Logits per chunk: 16 MiB in float32."""


def linear_cross_entropy(hidden_ND: Tensor, head_VD: Tensor, targets_N: Tensor, ignore: int = -100) -> Tensor:
    """Sum over tokens of -log softmax(hidden head^T)[target], a scalar in float32 at least.

    Targets equal to `ignore` add nothing. The gradients are formed chunk by chunk in the forward pass, so
    the logits exist once and are gone before the backward pass.
    """
    dtype = compute_dtype(hidden_ND)
    hidden_ND, head_VD = hidden_ND.to(dtype), head_VD.to(dtype)
    return _LinearCrossEntropy.apply(hidden_ND, head_VD, targets_N, ignore, torch.is_grad_enabled())


class TokenScores(NamedTuple):
    losses_N: Tensor
    """-log softmax(hidden head^T)[target] in float32 at least; 0 where there is no target (-100)."""
    best_N: Tensor
    """int64: the token that the head holds most likely."""


@torch.no_grad()
def score_tokens(hidden_ND: Tensor, head_VD: Tensor, targets_N: Tensor) -> TokenScores:
    """What a linear head makes of each token, without a gradient."""
    losses, best = [], []
    for hidden_CD, targets_C in zip(_chunks(hidden_ND, head_VD), _chunks(targets_N, head_VD), strict=True):
        logits_CV = _logits(hidden_CD, head_VD)
        losses.append(F.cross_entropy(logits_CV, targets_C, reduction="none"))
        best.append(logits_CV.argmax(1))
    return TokenScores(torch.cat(losses), torch.cat(best))


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_ND, head_VD, targets_N, ignore, with_gradient):
        wide = torch.promote_types(hidden_ND.dtype, torch.float32)
        total = torch.zeros((), dtype=wide, device=hidden_ND.device)
        d_hidden = torch.empty_like(hidden_ND) if with_gradient else None
        d_head = torch.zeros_like(head_VD, dtype=wide) if with_gradient else None
        row = 0
        chunks = zip(_chunks(hidden_ND, head_VD), _chunks(targets_N, head_VD), strict=True)
        for hidden_CD, targets_C in chunks:
            valid_C1 = (targets_C != ignore).unsqueeze(1)
            targets_C1 = targets_C.unsqueeze(1).masked_fill(~valid_C1, 0)
            log_probs_CV = _logits(hidden_CD, head_VD).log_softmax(-1)
            total -= (log_probs_CV.gather(1, targets_C1) * valid_C1).sum()
            if d_hidden is None or d_head is None:
                continue
            d_logits_CV = log_probs_CV.exp_().scatter_add_(
                1, targets_C1, -torch.ones_like(valid_C1, dtype=wide)
            )
            d_logits_CV = d_logits_CV.to(hidden_CD.dtype)
            d_hidden_CD = torch.mm(d_logits_CV, head_VD, out=d_hidden[row : row + len(hidden_CD)])
            d_hidden_CD *= valid_C1
            valid_CD = hidden_CD * valid_C1
            if d_head.dtype == d_logits_CV.dtype:
                d_head.addmm_(d_logits_CV.T, valid_CD)
            else:
                d_head += d_logits_CV.T @ valid_CD
            row += len(hidden_CD)
        ctx.save_for_backward(d_hidden, d_head)
        ctx.head_dtype = head_VD.dtype
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d_total):
        d_hidden, d_head = ctx.saved_tensors
        d_hidden = d_hidden * d_total.to(d_hidden.dtype)
        return d_hidden, (d_head * d_total).to(ctx.head_dtype), None, None, None


def _chunks(x_N: Tensor, head_VD: Tensor) -> tuple[Tensor, ...]:
    return x_N.split(max(CHUNK_ELEMENTS // len(head_VD), 16))


def _logits(hidden_CD: Tensor, head_VD: Tensor) -> Tensor:
    logits_CV = hidden_CD @ head_VD.T
    return logits_CV.to(torch.promote_types(logits_CV.dtype, torch.float32))
