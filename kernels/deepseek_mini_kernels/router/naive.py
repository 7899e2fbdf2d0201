"""Routing in plain torch, step by step (V3 Eq. 12-16). Legend: as in the package."""

import torch
from torch import Tensor

from deepseek_mini_kernels.router.rule import Rule


def route(logits_NE: Tensor, bias_E: Tensor | None, rule: Rule) -> tuple[Tensor, Tensor, Tensor]:
    scores_NE = logits_NE.sigmoid() if rule.score == "sigmoid" else logits_NE.softmax(-1)
    experts_NK = _select(scores_NE.detach(), bias_E, rule)
    weights_NK = scores_NE.gather(1, experts_NK)
    if rule.score == "sigmoid":
        weights_NK = weights_NK / (weights_NK.sum(-1, keepdim=True) + 1e-20)
    return weights_NK * rule.route_scale, experts_NK, scores_NE


def _select(scores_NE: Tensor, bias_E: Tensor | None, rule: Rule) -> Tensor:
    biased_NE = scores_NE if bias_E is None else scores_NE + bias_E
    if rule.n_groups > 1:
        biased_NGX = biased_NE.unflatten(1, (rule.n_groups, -1))
        best_NG2 = biased_NGX.topk(2 if rule.group_score == "top2" else 1, dim=-1).values
        groups_NM = _best(best_NG2.sum(-1), rule.n_limited_groups)
        excluded_NG = torch.ones_like(biased_NGX[..., 0], dtype=torch.bool).scatter_(1, groups_NM, False)
        biased_NE = biased_NGX.masked_fill(excluded_NG[..., None], -torch.inf).flatten(1)
    return _best(biased_NE, rule.n_activated)


def _best(values: Tensor, n: int) -> Tensor:
    """Places of the n largest, best first, of equals the first; a NaN is larger than all."""
    return (
        values.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)
        .sort(dim=-1, descending=True, stable=True)
        .indices[:, :n]
    )
