"""Optimizers of our own: a rule for one parameter, and a step that the device may void."""

import torch
from torch import Tensor


class VoidableOptimizer(torch.optim.Optimizer):
    """Applies `update` to each parameter that has a gradient."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Nothing changes where `found_inf`, PyTorch's protocol for gradient scaling, is set and 1."""
        void: Tensor | None = getattr(self, "found_inf", None)
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    gradient = parameter.grad if void is None else parameter.grad.masked_fill(void > 0, 0.0)
                    self.update(parameter, gradient, group, 1.0 if void is None else 1.0 - void)

    def update(self, parameter: Tensor, gradient: Tensor, group: dict, live: float | Tensor) -> None:
        """Move the parameter and its state; `live` is 1, or 0 for a void step, whose gradient is 0."""
        raise NotImplementedError
