"""What work allocates at its peak, by torch's own account: what the C library keeps does not blur it."""

from collections.abc import Callable
from itertools import accumulate
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile


def peak_of(work: Callable[[], object]) -> int:
    """Bytes that `work` allocates at most beyond what there was."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    recorded: Any = profiler.profiler
    changes = [event.nbytes() for event in recorded.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate(changes), default=0)


def peak_above_state(step: Callable[[], object], model: nn.Module) -> int:
    """Bytes at the peak of a training step above the level of weights, gradients and optimizer state.

    For a step that is not the first: the optimizer's state is there. Gradients are not when it begins.
    """
    model.zero_grad(set_to_none=True)
    peak = peak_of(step)
    return peak - sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
