"""RMSNorm with DeepSeek's epsilon. Legend: N positions, D normalised width."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPSILON = 1e-6


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension, computed in float32 at least; keeps the dtype."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, self.weight.dtype)
        own_backward = x.device.type == "cpu" and torch.is_grad_enabled()
        compute = _RmsNorm.apply if own_backward else _fused_rms_norm
        return compute(x.to(wide), self.weight.to(wide)).to(x.dtype)


def _fused_rms_norm(x: Tensor, weight_D: Tensor) -> Tensor:
    return F.rms_norm(x, weight_D.shape, weight_D, EPSILON)


class _RmsNorm(torch.autograd.Function):
    """The same with a backward pass of five sweeps over memory: PyTorch has no kernel of it for CPUs."""

    @staticmethod
    def forward(ctx, x, weight_D):
        x_ND = x.reshape(-1, x.shape[-1])
        square_N1 = torch.linalg.vector_norm(x_ND, dim=-1, keepdim=True).square()
        scale_N1 = (square_N1 / x_ND.shape[1] + EPSILON).rsqrt()
        ctx.save_for_backward(x_ND, weight_D, scale_N1)
        return (x_ND * scale_N1).mul_(weight_D).view(x.shape)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d_y):
        x_ND, weight_D, scale_N1 = ctx.saved_tensors
        d_y_ND = d_y.reshape(x_ND.shape)
        product_ND = d_y_ND * x_ND
        d_weight_D = scale_N1.view(-1) @ product_ND
        along_N1 = (product_ND @ weight_D).unsqueeze(1) * scale_N1**3 / x_ND.shape[1]
        d_x_ND = torch.mul(d_y_ND, weight_D, out=product_ND).mul_(scale_N1).addcmul_(x_ND, along_N1, value=-1)
        return d_x_ND.view(d_y.shape), d_weight_D
