"""RMSNorm with DeepSeek's epsilon."""

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
        return F.rms_norm(x.to(wide), self.weight.shape, self.weight.to(wide), EPSILON).to(x.dtype)
