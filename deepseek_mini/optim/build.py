"""Which optimizer updates which parameter."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from deepseek_mini.config import Optimizer, OptimizerConfig
from deepseek_mini.optim.muon import Muon


def build_optimizers(model: nn.Module, config: OptimizerConfig) -> list[torch.optim.Optimizer]:
    """AdamW on everything (V3 section 4.2), or Muon on the hidden matrices and AdamW on the rest.

    Weight decay acts on matrices, with embedding, head and gate among them, not on norms. Gate biases are
    buffers and belong to no optimizer.
    """
    named = dict(model.named_parameters())
    hidden = {n for n in named if config.name is Optimizer.muon and _is_hidden_matrix(n, named[n])}
    matrices = {n for n, p in named.items() if p.ndim >= 2} - hidden
    vectors = set(named) - matrices - hidden
    groups = [
        {"params": [named[n] for n in sorted(matrices)], "weight_decay": config.weight_decay},
        {"params": [named[n] for n in sorted(vectors)], "weight_decay": 0.0},
    ]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(
            groups, lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps, fused=True
        )
    ]
    if hidden:
        parameters = [named[n] for n in sorted(hidden)]
        optimizers.append(Muon(parameters, config.lr, config.muon_momentum, config.weight_decay))
    return optimizers


def _is_hidden_matrix(name: str, parameter: Tensor) -> bool:
    """Every matrix but the embedding and the head."""
    return parameter.ndim >= 2 and not name.startswith(("embed.", "head."))


def set_learning_rate(optimizers: Iterable[torch.optim.Optimizer], lr: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr
