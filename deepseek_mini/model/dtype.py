"""The arithmetic of matrix products."""

import torch
from torch import Tensor, nn


def compute_dtype(x: Tensor) -> torch.dtype:
    """What a matrix product with `x` is computed in: autocast's choice for its device, else its own dtype."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


class Cast(nn.Module):
    """To what products are computed in, once for all the layers that read it."""

    def forward(self, x: Tensor) -> Tensor:
        return x.to(compute_dtype(x))
