"""The arithmetic of hand-written matrix products."""

import torch
from torch import Tensor


def compute_dtype(x: Tensor) -> torch.dtype:
    """What a matrix product with `x` is computed in: autocast's choice for its device, else its own dtype."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
