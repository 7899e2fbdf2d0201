"""AdamW whose moments are kept in BF16, as V3 keeps them (section 3.3.3); PyTorch's own has FP32."""

import torch
from torch import Tensor

from deepseek_mini.optim.voidable import VoidableOptimizer


class AdamWBf16(VoidableOptimizer):
    """AdamW computed in float32; only what is kept between steps is rounded, 4 bytes a weight instead of 8.

    With beta2 = 0.95 that loses little. With 0.999 most second moments would stand still: a step changes them
    by a thousandth, and BF16 has steps of 1/256 to 1/128.
    """

    moment_dtype = torch.bfloat16

    def __init__(self, params, lr: float, betas: tuple[float, float], eps: float) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    def update(self, parameter: Tensor, gradient: Tensor, group: dict, live: float | Tensor) -> None:
        state, (beta1, beta2) = self.state[parameter], group["betas"]
        if not state:
            state["step"] = torch.zeros((), device=parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter, dtype=self.moment_dtype)
            state["exp_avg_sq"] = torch.zeros_like(parameter, dtype=self.moment_dtype)
        mean = state["exp_avg"].to(gradient, copy=True).lerp_(gradient, (1 - beta1) * live)
        square = state["exp_avg_sq"].to(gradient, copy=True).lerp_(gradient.square(), (1 - beta2) * live)
        step = state["step"] + 1
        state["step"] += live
        state["exp_avg"].copy_(mean)
        state["exp_avg_sq"].copy_(square)
        size = square.div_(1 - beta2**step).sqrt_().add_(group["eps"])
        parameter.mul_(1 - group["lr"] * group["weight_decay"] * live)
        parameter.sub_(mean.div_(size).mul_(group["lr"] * live / (1 - beta1**step)))
