"""BF16 copies of the weights that live for one optimizer step."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from deepseek_mini.model.dtype import compute_dtype
from deepseek_mini.model.experts import RoutedExperts


@contextmanager
def holding_casts(model: nn.Module, autocast: torch.autocast) -> Iterator[None]:
    """Within, no parameter changes, and modules read the casts of their weights: each is cast once.

    Their gradients, added up in the parameters' dtype, are the parameters' afterwards; there must be none
    before. A cast takes 2 bytes a weight, and is gone afterwards unless a graph has it. Autocast's own cache
    does not last: whenever a thread leaves its outermost autocast, it is emptied for all of them.
    """
    held = []
    with autocast:
        for module in model.modules():
            if type(module) in (nn.Linear, RoutedExperts):
                for name, parameter in module.named_parameters(recurse=False):
                    if (dtype := compute_dtype(parameter)) != parameter.dtype:
                        cast = parameter.detach().to(dtype).requires_grad_()
                        cast.grad_dtype = parameter.dtype
                        held.append((module.__dict__, name, parameter, cast))
    for attributes, name, _, cast in held:
        attributes[name] = cast  # found before the parameter
    try:
        yield
        for _, _, parameter, cast in held:
            assert parameter.grad is None
            parameter.grad = cast.grad
    finally:
        for attributes, name, _, _ in held:
            del attributes[name]
