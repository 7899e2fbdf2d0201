"""What a run says of itself: the header before it, and summary.json after it."""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from deepseek_mini import run_files
from deepseek_mini.config import Config
from deepseek_mini.cost.flops import active_params, mtp_params, total_params
from deepseek_mini.cost.hardware import device_name
from deepseek_mini.cost.meter import device_seconds, read_ledger
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
    origin = (
        "model.moe.bias_update_rate" if model.moe.bias_update_rate is not None else "from the run's length"
    )
    peak = trainer.peak.flops_per_second
    return Header(
        run=str(trainer.run_dir),
        device=f"{device_name(trainer.device)} ({device_reason})",
        precision=precision,
        parameters=parameters,
        flops=f"{_short(trainer.flops_per_token)} per token (causal, "
        f"{'with MTP, ' if model.mtp.depth else ''}without the gate)",
        peak=f"{_short(peak) + 'FLOP/s' if peak else 'n/a'}, {trainer.peak.source}",
        data=trainer.data.description,
        plan=f"{len(plans):,} steps, {_short(tokens)} tokens; bias update rate {rate:.2g} ({origin})",
        start=f"from step {trainer.state.step} of a checkpoint"
        if trainer.state.step
        else "from the beginning",
        steps=len(plans),
    )


def make_summary(config: Config, run_dir: Path, reason: str, **measured: float | None) -> dict[str, Any]:
    """The content of summary.json; losses are the run's own records, over all attempts."""
    rows = [row for row in run_files.read_metrics(run_dir) if row.get("val/bpb") is not None]
    return {
        "exit_reason": reason,
        "best_val_bpb": min((row["val/bpb"] for row in rows), default=None),
        "final_val_bpb": rows[-1]["val/bpb"] if rows else None,
        "final_val_loss": rows[-1]["val/loss"] if rows else None,
        "device_hours": device_seconds(read_ledger(run_dir / run_files.LEDGER)) / 3600,
        "total_params": total_params(config.model),
        "active_params": active_params(config.model),
        "mtp_params": mtp_params(config.model),
        **measured,
    }


def peak_memory_gib(device: torch.device) -> float:
    """Most memory held so far: allocated on the GPU, or resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


def _short(value: float) -> str:
    """1234567 -> 1.23M."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "K")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"
