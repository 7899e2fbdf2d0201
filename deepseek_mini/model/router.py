"""The gate of DeepSeekMoE: which experts a token goes to, and how they are kept in balance.

Legend: N tokens, B rows, T positions, D model width, E routed experts, K experts per token,
G expert groups, M groups that a token may use, X = E / G experts per group.

  x_N -> scores = sigmoid(W x) ----------------------------> weights = scores of the chosen,
             |                                                  normalised, times route_scale
             + bias -> best M groups -> best K experts ----> chosen experts
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepseek_mini.config import Balance, BalanceScope, GroupScore, ModelConfig, ScoreFunction


class Routing(NamedTuple):
    """Where tokens go: gate weights and expert numbers, best first, and every expert's plain score."""

    weights_NK: Tensor
    experts_NK: Tensor
    scores_NE: Tensor


class Gate(nn.Module):
    """Scores, node-limited selection on score + bias, and unbiased gate weights (V3 Eq. 12-16).

    Scores and weights are float32 at least, also under autocast. The bias is a float32 buffer whatever
    the model is cast to; it is no parameter, so no optimizer, decay or clipping reaches it.
    """

    bias: Tensor | None

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_activated = config.n_activated_experts
        self.n_groups, self.n_limited_groups = config.n_expert_groups, config.n_limited_groups
        self.route_scale = config.route_scale
        self.score = SCORES[config.score_func]
        self.normalise = NORMALISATIONS[config.score_func]
        self.group_score = GROUP_SCORES[config.group_score]
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.dim))
        has_bias = config.moe.balance is Balance.bias
        self.register_buffer("bias", torch.zeros(config.n_routed_experts) if has_bias else None)

    def forward(self, x_ND: Tensor) -> Routing:
        with torch.autocast(x_ND.device.type, enabled=False):
            wide = torch.promote_types(x_ND.dtype, torch.float32)
            scores_NE = self.score(F.linear(x_ND.to(wide), self.weight.to(wide)))
            experts_NK = self.select(scores_NE.detach())
            weights_NK = self.normalise(scores_NE.gather(1, experts_NK)) * self.route_scale
        return Routing(weights_NK, experts_NK, scores_NE)

    def select(self, scores_NE: Tensor) -> Tensor:
        """Expert numbers `[N, K]`: the best biased scores within the best groups."""
        biased_NE = scores_NE if self.bias is None else scores_NE + self.bias
        if self.n_groups > 1:
            biased_NGX = biased_NE.unflatten(1, (self.n_groups, -1))
            groups_NM = self.group_score(biased_NGX).topk(self.n_limited_groups, dim=1).indices
            excluded_NG = torch.ones_like(biased_NGX[..., 0], dtype=torch.bool).scatter_(1, groups_NM, False)
            biased_NE = biased_NGX.masked_fill(excluded_NG[..., None], -torch.inf).flatten(1)
        return biased_NE.topk(self.n_activated, dim=1).indices

    def _apply(self, fn, recurse: bool = True):
        """Casts of the model move the bias to its device but leave it float32, to the last bit."""
        bias = self.bias
        super()._apply(fn, recurse)
        if bias is not None and self.bias is not None and self.bias.dtype != torch.float32:
            self.bias = bias.to(self.bias.device)
        return self


SCORES: dict[ScoreFunction, Callable[[Tensor], Tensor]] = {
    ScoreFunction.sigmoid: torch.sigmoid,
    ScoreFunction.softmax: lambda logits_NE: logits_NE.softmax(-1),
}
NORMALISATIONS: dict[ScoreFunction, Callable[[Tensor], Tensor]] = {
    ScoreFunction.sigmoid: lambda scores_NK: scores_NK / (scores_NK.sum(-1, keepdim=True) + 1e-20),
    ScoreFunction.softmax: lambda scores_NK: scores_NK,
}
GROUP_SCORES: dict[GroupScore, Callable[[Tensor], Tensor]] = {
    GroupScore.top2: lambda biased_NGX: biased_NGX.topk(2, dim=-1).values.sum(-1),
    GroupScore.max: lambda biased_NGX: biased_NGX.amax(-1),
}


def count_assignments(experts: Tensor, n_experts: int) -> Tensor:
    """How often each expert occurs along the last dimension: int64 `[..., n_experts]`."""
    zeros = torch.zeros(*experts.shape[:-1], n_experts, dtype=torch.int64, device=experts.device)
    return zeros.scatter_add_(-1, experts, torch.ones_like(experts))


def sequence_balance_loss(scores_BTE: Tensor, n_activated: int) -> Tensor:
    """The sequence-wise balance loss of each row, `[B]`, without its factor alpha (V3 Eq. 17-20).

    f counts the experts that are among the best K by their plain score, without bias or groups (Eq. 18 as
    written); P is the mean share of an expert in the scores. A row in perfect balance has the loss 1.
    """
    n_tokens, n_experts = scores_BTE.shape[1:]
    chosen_BTK = scores_BTE.detach().topk(n_activated, dim=-1).indices
    counts_BE = count_assignments(chosen_BTK.flatten(1), n_experts)
    f_BE = counts_BE.to(scores_BTE.dtype) * (n_experts / (n_activated * n_tokens))
    p_BE = (scores_BTE / (scores_BTE.sum(-1, keepdim=True) + 1e-20)).mean(1)
    return (f_BE * p_BE).sum(-1)


def batch_balance_loss(scores_BTE: Tensor, n_activated: int) -> Tensor:
    """The same with all rows as one sequence (V3 section 4.5.3), `[B]`: its value at every row."""
    return sequence_balance_loss(scores_BTE.flatten(0, 1)[None], n_activated).expand(len(scores_BTE))


BALANCE_LOSSES: dict[BalanceScope, Callable[[Tensor, int], Tensor]] = {
    BalanceScope.sequence: sequence_balance_loss,
    BalanceScope.batch: batch_balance_loss,
}


@torch.no_grad()
def update_bias(bias_E: Tensor, counts_E: Tensor, rate: float | Tensor) -> None:
    """Move each bias by `rate` towards the mean load, in place (V3 section 2.1.2; arXiv:2408.15664 Alg. 1).

    `counts_E` (int64) are the tokens of the whole optimizer step. Loads are compared as integers, so an
    expert exactly at the mean keeps its bias.
    """
    bias_E += rate * torch.sign(counts_E.sum() - counts_E * counts_E.numel())
