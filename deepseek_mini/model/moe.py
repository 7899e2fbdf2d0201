"""DeepSeekMoE: one gate, many fine-grained routed experts and the shared ones (V3 Eq. 12).

Legend: B rows, T positions, N = B * T tokens, D model width, E experts.
"""

from typing import NamedTuple

from torch import Tensor, nn

from deepseek_mini.config import ModelConfig
from deepseek_mini.model.experts import Mlp, RoutedExperts
from deepseek_mini.model.router import BALANCE_LOSSES, Gate, count_assignments


class MoeStats(NamedTuple):
    """What one pass of a layer tells about its balance.

    It is a result, not state: recomputation in the backward pass cannot count a token twice.
    """

    counts_E: Tensor
    """int64 assignments per expert."""
    balance_loss_B: Tensor
    """Balance loss of each row, without its factor."""


class MoE(nn.Module):
    """Shared experts on every token, plus the gate's choice of routed experts. The residual is outside."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate = Gate(config)
        self.balance_loss = BALANCE_LOSSES[config.moe.balance_scope]
        self.experts = RoutedExperts(config)
        shared_dim = config.n_shared_experts * config.moe_inter_dim
        self.shared_experts = Mlp(config.dim, shared_dim) if shared_dim else None

    def forward(self, x_BTD: Tensor) -> tuple[Tensor, MoeStats]:
        x_ND = x_BTD.flatten(0, 1)
        routing = self.gate(x_ND)
        y_BTD = self.experts(x_ND, routing.weights_NK, routing.experts_NK).unflatten(0, x_BTD.shape[:2])
        if self.shared_experts is not None:
            y_BTD = y_BTD + self.shared_experts(x_BTD)
        scores_BTE = routing.scores_NE.unflatten(0, x_BTD.shape[:2])
        n_experts, n_activated = scores_BTE.shape[-1], routing.experts_NK.shape[-1]
        counts_E = count_assignments(routing.experts_NK.flatten(), n_experts)
        return y_BTD, MoeStats(counts_E, self.balance_loss(scores_BTE, n_activated))


class DenseFfn(Mlp):
    """The MLP of the first layers, with an MoE layer's interface."""

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return super().forward(x), None
