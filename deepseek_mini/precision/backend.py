"""Which backend multiplies in FP8, and why not another."""

from collections.abc import Callable
from dataclasses import replace

import torch

from deepseek_mini.config import Accumulation, Backend, Format, Granularity, PrecisionConfig
from deepseek_mini_kernels.backend import why_not_triton

FASTEST_FIRST = (Backend.te, Backend.triton, Backend.emulated)


def choose_backend(
    precision: PrecisionConfig, device: torch.device, announce: Callable[[str], None]
) -> PrecisionConfig:
    """`precision` with a backend that runs on `device`; other formats than fp8 as they are.

    `auto` takes the fastest that runs, and announces with a line each why the faster ones do not. Raises
    ValueError if the backend that is asked for cannot run.
    """
    if precision.format is not Format.fp8:
        return precision
    if precision.backend is not Backend.auto:
        if obstacle := why_not(precision.backend, precision, device):
            raise ValueError(
                f"precision.backend={precision.backend}: {obstacle}; precision.backend=auto takes what runs"
            )
        return precision
    for backend in FASTEST_FIRST:
        obstacle = why_not(backend, precision, device)
        if backend is Backend.triton and device.type == "cpu":
            obstacle = "the device is a CPU, on which its kernels can only be simulated"
        if obstacle is None:
            return replace(precision, backend=backend)
        announce(f"fp8: not by {backend}: {obstacle}")
    raise AssertionError("the emulation runs everywhere")


def why_not(backend: Backend, precision: PrecisionConfig, device: torch.device) -> str | None:
    """Why a backend cannot do this; None if it can."""
    if backend is Backend.emulated:
        return None
    for key, plain in (("granularity", Granularity.tiles), ("accumulation", Accumulation.fp32)):
        if (value := getattr(precision, key)) is not plain:
            return f"precision.{key}={value} is for studies, and emulated"
    if backend is Backend.te:
        from deepseek_mini.precision.transformer_engine import why_not_te

        return why_not_te(device)
    return why_not_triton(device)


def precision_words(precision: PrecisionConfig, dtype: torch.dtype, reason: str) -> str:
    """The arithmetic of a run in a line. `precision` has a backend that runs; `dtype` is that of the rest."""
    rest = f"{'bf16, fp32 master weights' if dtype is torch.bfloat16 else 'fp32'} ({reason})"
    if precision.format is not Format.fp8:
        return rest
    plain = PrecisionConfig(Format.fp8, precision.backend, precision.scales)
    studied = f", granularity {precision.granularity}, sums {precision.accumulation}"
    how = f"{precision.backend}, {precision.scales} factors{studied if precision != plain else ''}"
    return f"fp8 by {how}; the rest {rest}"
