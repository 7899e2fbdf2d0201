"""What a run says of itself: the header before it, and summary.json after it."""

from __future__ import annotations

import resource
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from deepseek_mini import run_files
from deepseek_mini.config import Config
from deepseek_mini.cost.flops import active_params, mtp_params, total_params
from deepseek_mini.cost.hardware import device_name
from deepseek_mini.cost.meter import device_seconds, read_ledger, seconds_by_phase
from deepseek_mini.tracking import Header

if TYPE_CHECKING:
    from deepseek_mini.training.trainer import Trainer


def make_header(trainer: Trainer, device_reason: str, precision: str) -> Header:
    """The lines above a run, each an automatic choice or a size with its reason."""
    config, plans = trainer.config, trainer.plans
    tokens = plans[-1].tokens_before + plans[-1].batch_size * config.data.sequence_length
    model = config.model
    parameters = f"{_short(total_params(model))} total, {_short(active_params(model))} active per token"
    if model.mtp.depth:
        parameters += f", {_short(mtp_params(model))} more in MTP"
    rate = plans[0].bias_update_rate
    automatic = "from the run's length, falling with the learning rate"
    origin = automatic if model.moe.bias_update_rate is None else "model.moe.bias_update_rate"
    peak = trainer.peak.flops_per_second
    return Header(
        run=str(trainer.run_dir),
        device=f"{device_name(trainer.device)} ({device_reason})",
        precision=precision,
        parameters=parameters,
        flops=f"{_short(trainer.flops_per_token)} per token (causal, "
        f"{'with MTP, ' if model.mtp.depth else ''}without the gate)",
        peak=f"{_short(peak, ' ') + 'FLOP/s' if peak else 'n/a'}, {trainer.peak.source}",
        data=trainer.data.description,
        plan=f"{len(plans):,} steps, {_short(tokens)} tokens; bias update rate {rate:.2g} ({origin})",
        start=_start(trainer.state.step, model.init_from),
        steps=len(plans),
    )


def make_summary(
    config: Config, run_dir: Path, reason: str, memory_gib: float, **measured: float | None
) -> dict[str, Any]:
    """The content of summary.json: what was measured, and the run's own records, over all attempts."""
    rows = run_files.read_metrics(run_dir)
    bpb, loss = _recorded(rows, "val/bpb"), _recorded(rows, "val/loss")
    return {
        "exit_reason": reason,
        "best_val_bpb": min(bpb, default=None),
        "final_val_bpb": bpb[-1] if bpb else None,
        "final_val_loss": loss[-1] if loss else None,
        "device_hours": device_seconds(read_ledger(run_dir / run_files.LEDGER)) / 3600,
        "steady_tokens_per_second": _median(_recorded(rows, "perf/tokens_per_second")),
        "mfu": _median(_recorded(rows, "perf/mfu")),
        "peak_memory_gib": max([memory_gib, *_recorded(rows, "perf/memory_gib")]),
        "total_params": total_params(config.model),
        "active_params": active_params(config.model),
        "mtp_params": mtp_params(config.model),
        **measured,
    }


def wall_seconds(run_dir: Path) -> float:
    """Seconds that all attempts at a run have taken."""
    return sum(seconds_by_phase(read_ledger(run_dir / run_files.LEDGER)).values())


def _recorded(rows: list[dict[str, Any]], name: str) -> list[float]:
    """The known values of a figure, in the order of the steps."""
    return [row[name] for row in rows if row.get(name) is not None]


def _median(values: list[float]) -> float | None:
    return statistics.median(values) if values else None


def _start(step: int, init_from: str | None) -> str:
    if step:
        return f"from step {step} of a checkpoint"
    return f"from the weights of {init_from}" if init_from else "from the beginning"


def peak_memory_gib(device: torch.device) -> float:
    """Most memory held so far: allocated on the GPU, or resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


def _short(value: float, space: str = "") -> str:
    """1234567 -> 1.23M."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "K")):
        if value >= size:
            return f"{value / size:.3g}{space}{unit}"
    return f"{value:.3g}"
