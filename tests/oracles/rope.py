"""RoPE on interleaved pairs and YaRN, as DeepSeek's released `precompute_freqs_cis` does them.

`c` is anything with the field names of DeepSeek's config_671B.json.
"""

import math
from typing import Any

from oracles.layers import Vector


def yarn_range(c: Any, dim: int) -> tuple[int, int]:
    """The indices of the frequencies between which YaRN goes from unchanged to divided."""

    def index(rotations: float) -> float:
        wave_length = c.original_seq_len / (rotations * 2 * math.pi)
        return dim * math.log(wave_length) / (2 * math.log(c.rope_theta))

    return max(math.floor(index(c.beta_fast)), 0), min(math.ceil(index(c.beta_slow)), dim - 1)


def frequencies(c: Any, dim: int) -> list[float]:
    """Radians per position of each of the dim / 2 pairs."""
    base = [c.rope_theta ** (-2 * i / dim) for i in range(dim // 2)]
    if c.max_seq_len <= c.original_seq_len:
        return base
    low, high = yarn_range(c, dim)
    width = high - low if high != low else 0.001
    ramp = [min(max((i - low) / width, 0.0), 1.0) for i in range(dim // 2)]
    return [f * (1 - r) + f / c.rope_factor * r for f, r in zip(base, ramp, strict=True)]


def mscale(c: Any) -> float:
    """The factor on the attention scores is the square of this (V3's sqrt(1/t) = 0.1 ln s + 1)."""
    if c.max_seq_len <= c.original_seq_len:
        return 1.0
    return 0.1 * c.mscale * math.log(c.rope_factor) + 1.0


def softmax_scale(c: Any, head_dim: int) -> float:
    return head_dim**-0.5 * mscale(c) ** 2


def rotate(x: Vector, position: int, frequencies: list[float]) -> Vector:
    """Turn each pair (x[2i], x[2i + 1]) by position * frequencies[i]."""
    turned = []
    for i, frequency in enumerate(frequencies):
        cos, sin = math.cos(position * frequency), math.sin(position * frequency)
        turned += [x[2 * i] * cos - x[2 * i + 1] * sin, x[2 * i] * sin + x[2 * i + 1] * cos]
    return turned
