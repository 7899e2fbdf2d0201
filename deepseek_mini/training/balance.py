"""How evenly the experts are used. Legend: L layers with experts, E experts."""

import torch
from torch import Tensor


def max_violation(counts_LE: Tensor) -> float:
    """MaxVio = (largest load - mean load) / mean load, averaged over layers (arXiv:2408.15664 section 4)."""
    load_LE = relative_load(counts_LE)
    return (load_LE.amax(1) - 1).mean().item()


def balance_metrics(counts_LE: Tensor) -> dict[str, float | int]:
    """Expert health of one step from its int64 counts; empty for a model without experts."""
    if counts_LE.numel() == 0:
        return {}
    load_LE = relative_load(counts_LE)
    share_LE = load_LE / load_LE.shape[1]
    entropy_L = -torch.xlogy(share_LE, share_LE).sum(1) / torch.log(torch.tensor(float(load_LE.shape[1])))
    return {
        "moe/max_violation": max_violation(counts_LE),
        "moe/min_load": load_LE.min().item(),
        "moe/dead_experts": int((counts_LE == 0).sum()),
        "moe/entropy": entropy_L.mean().item(),
    }


def relative_load(counts_LE: Tensor) -> Tensor:
    """Load of each expert over its layer's mean: 1 is fair, 0 is dead."""
    counts_LE = counts_LE.double()
    return counts_LE / counts_LE.mean(1, keepdim=True)
