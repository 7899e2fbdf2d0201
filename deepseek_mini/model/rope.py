"""Rotary position embedding on interleaved pairs, with YaRN beyond the original context.

Legend: B batch, T positions, H heads, R rotated width, P = R / 2 pairs.
"""

import math

import torch
from torch import Tensor

from deepseek_mini.config import ModelConfig


def uses_yarn(config: ModelConfig) -> bool:
    """YaRN acts once the context exceeds the one of pre-training (DeepSeek's released rule)."""
    return config.max_seq_len > config.original_seq_len


def rope_frequencies(config: ModelConfig, dim: int, device: torch.device | None = None) -> Tensor:
    """Angle per position of each pair, `[dim / 2]` float32.

    With YaRN (arXiv:2309.00071; V3 section 4.3) the slow frequencies are divided by `rope_factor`, the
    fast ones stay, and a linear ramp joins them between the pairs that turn `beta_fast` and `beta_slow`
    times over the original context.
    """
    frequencies_P = config.rope_theta ** -(torch.arange(0, dim, 2, dtype=torch.float32, device=device) / dim)
    if not uses_yarn(config):
        return frequencies_P
    low = max(math.floor(_pair_turning(config.beta_fast, config, dim)), 0)
    high = min(math.ceil(_pair_turning(config.beta_slow, config, dim)), dim - 1)
    ramp_P = (torch.arange(dim // 2, dtype=torch.float32, device=device) - low) / max(high - low, 1e-3)
    slow_P = ramp_P.clamp(0, 1)
    return frequencies_P / config.rope_factor * slow_P + frequencies_P * (1 - slow_P)


def _pair_turning(turns: float, config: ModelConfig, dim: int) -> float:
    """Index of the pair that turns so many times over the original context."""
    wavelengths = config.original_seq_len / (turns * 2 * math.pi)
    return dim * math.log(wavelengths) / (2 * math.log(config.rope_theta))


def rotation_table(config: ModelConfig, dim: int, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines `[length, dim / 2]` in float32 for the positions from 0."""
    frequencies_P = rope_frequencies(config, dim, device)
    angles_TP = torch.outer(torch.arange(length, dtype=torch.float32, device=device), frequencies_P)
    return angles_TP.cos(), angles_TP.sin()


def apply_rope(x_BTHR: Tensor, cos_TP: Tensor, sin_TP: Tensor) -> Tensor:
    """Turn the pairs (2i, 2i+1) of the last dimension by their position's angle; keeps shape and dtype.

    Computed in float32 at least. The pairs are interleaved as in DeepSeek's released weights.
    """
    wide = torch.promote_types(x_BTHR.dtype, torch.float32)
    even_BTHP, odd_BTHP = x_BTHR.to(wide).unflatten(-1, (-1, 2)).unbind(-1)
    cos_T1P, sin_T1P = cos_TP.to(wide).unsqueeze(-2), sin_TP.to(wide).unsqueeze(-2)
    turned = torch.stack(
        (even_BTHP * cos_T1P - odd_BTHP * sin_T1P, even_BTHP * sin_T1P + odd_BTHP * cos_T1P), dim=-1
    )
    return turned.flatten(-2).to(x_BTHR.dtype)


def softmax_scale(config: ModelConfig, head_dim: int) -> float:
    """Factor on the attention scores: head_dim^-0.5, times mscale^2 where YaRN acts (V3 released code)."""
    scale = head_dim**-0.5
    if uses_yarn(config):
        scale *= (0.1 * config.mscale * math.log(config.rope_factor) + 1) ** 2
    return scale
