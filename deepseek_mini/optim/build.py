"""Which optimizer updates which parameter."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from deepseek_mini.config import Moments, Optimizer, OptimizerConfig
from deepseek_mini.optim.adamw import AdamWBf16
from deepseek_mini.optim.muon import Muon


def build_optimizers(model: nn.Module, config: OptimizerConfig) -> list[torch.optim.Optimizer]:
    """AdamW on everything (V3 section 4.2), or Muon on the hidden matrices and AdamW on the rest.

    Weight decay acts on matrices, with embedding, head and gate among them, not on norms. Gate biases are
    buffers and belong to no optimizer.
    """
    named = dict(model.named_parameters())
    hidden = {n for n in named if config.name is Optimizer.muon and _is_hidden_matrix(n, named[n])}
    embedding = {n for n in named if n.startswith("embed.")}
    matrices = {n for n, p in named.items() if p.ndim >= 2} - hidden - embedding
    vectors = set(named) - matrices - hidden - embedding

    def group(names: set[str], weight_decay: float, lr_scale: float = 1.0) -> dict:
        parameters = [named[n] for n in sorted(names)]
        return {"params": parameters, "weight_decay": weight_decay, "lr_scale": lr_scale}

    groups = [
        group(matrices, config.weight_decay),
        group(vectors, weight_decay=0.0),
        group(embedding, config.weight_decay, config.embedding_lr_scale),
    ]
    optimizers = [_adamw(groups, config)]
    if hidden:
        muon_groups = [group(hidden, config.weight_decay)]
        dtype = torch.bfloat16 if config.moments is Moments.bf16 else None
        optimizers.append(Muon(muon_groups, config.lr, config.muon_momentum, config.weight_decay, dtype))
    return optimizers


def _adamw(groups: list[dict], config: OptimizerConfig) -> torch.optim.Optimizer:
    betas = config.beta1, config.beta2
    if config.moments is Moments.bf16:
        return AdamWBf16(groups, config.lr, betas, config.eps)
    return torch.optim.AdamW(groups, lr=config.lr, betas=betas, eps=config.eps, fused=True)


def _is_hidden_matrix(name: str, parameter: Tensor) -> bool:
    """Every matrix but the embedding and the head."""
    return parameter.ndim >= 2 and not name.startswith(("embed.", "head."))


def set_learning_rate(optimizers: Iterable[torch.optim.Optimizer], lr: float) -> None:
    """The step's learning rate, for each group in its own scale."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
