"""What the GPU job asks beside the tests: the machine, the FP8 backends that run, and losses that agree.

    python scripts/gpu_checks.py environment [--need-hopper]
    python scripts/gpu_checks.py backends
    python scripts/gpu_checks.py losses REFERENCE RUN [RUN ...] [--within 0.005]

Exits with 1 where the answer is no.
"""

import argparse
import importlib.metadata
import json
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

from deepseek_mini.config import Backend, Device, Format, PrecisionConfig
from deepseek_mini.cost.hardware import choose_device, device_name
from deepseek_mini.precision.backend import FASTEST_FIRST, why_not
from deepseek_mini.run_files import read_metrics, read_summary
from deepseek_mini_kernels.backend import why_not_hopper

DECAY = 0.9
BOUND = 0.005
"""For a few hundred steps. After 120 on a CPU, emulated FP8 and a perturbed run are within 0.0002 of FP32."""


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="gpu_checks.py", description=(__doc__ or "").splitlines()[0])
    questions = parser.add_subparsers(dest="question", required=True)
    environment = questions.add_parser("environment", help="versions and devices as JSON")
    environment.add_argument("--need-hopper", action="store_true", help="exit 1 without a GPU for FP8")
    questions.add_parser("backends", help="FP8 backends that run here, the fastest first")
    losses = questions.add_parser("losses", help="late training losses of runs beside a reference's")
    losses.add_argument("reference", type=Path)
    losses.add_argument("runs", type=Path, nargs="+")
    losses.add_argument("--within", type=float, default=BOUND, help=f"largest relative difference ({BOUND})")
    arguments = parser.parse_args(argv)
    device, _ = choose_device(Device.auto)
    if arguments.question == "environment":
        print(json.dumps(describe(device), indent=2))
        obstacle = why_no_fp8(device) if arguments.need_hopper else None
        if obstacle:
            print(f"error: {obstacle}", file=sys.stderr)
        return 1 if obstacle else 0
    if arguments.question == "backends":
        print(*backends(device), sep="\n")
        return 0
    try:
        return compare_losses(arguments.reference, arguments.runs, arguments.within)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def describe(device: torch.device) -> dict[str, Any]:
    """Versions and devices, and why FP8 backends do not run."""
    names = ("torch", "triton", "transformer-engine", "transformers", "numpy")
    precision = PrecisionConfig(format=Format.fp8)
    return {
        "device": device_name(device),
        "capability": torch.cuda.get_device_capability(device) if device.type == "cuda" else None,
        "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in names},
        "commit": _output("git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"),
        "fp8": {backend: why_not(backend, precision, device) or "runs" for backend in FASTEST_FIRST},
    }


def why_no_fp8(device: torch.device) -> str | None:
    return (
        why_not_hopper(device) if device.type == "cuda" else f"no CUDA device: this is {device_name(device)}"
    )


def backends(device: torch.device) -> list[Backend]:
    """The FP8 backends that run, the fastest first."""
    precision = PrecisionConfig(format=Format.fp8)
    return [backend for backend in FASTEST_FIRST if why_not(backend, precision, device) is None]


def compare_losses(reference: Path, runs: Sequence[Path], bound: float) -> int:
    """Print late losses and speeds; 1 if a loss is out of `bound`. Raises ValueError if there are none."""
    wanted, n_steps = late_loss(reference), len(training_losses(reference))
    print(f"{'run':24}{'tokens/s':>12}{'loss':>10}{'difference':>13}   bound {bound:.2%}")
    print(f"{reference.name:24}{_speed(reference):>12}{wanted:10.4f}")
    outside = 0
    for run in runs:
        if len(training_losses(run)) != n_steps:
            raise ValueError(
                f"{run}: {len(training_losses(run))} training losses, and {reference} has {n_steps}"
            )
        loss = late_loss(run)
        difference = loss / wanted - 1
        is_inside = abs(difference) <= bound  # no NaN is
        outside += not is_inside
        verdict = "holds" if is_inside else "FAILS"
        print(f"{run.name:24}{_speed(run):>12}{loss:10.4f}{difference:+13.2%}   {verdict}")
    return 1 if outside else 0


def _speed(run: Path) -> str:
    speed = (read_summary(run) or {}).get("steady_tokens_per_second")
    return f"{speed:,.0f}" if speed else "n/a"


def late_loss(run: Path) -> float:
    """Mean over the last quarter of the training loss, smoothed with a decay of 0.9."""
    losses = training_losses(run)
    if len(losses) < 4:
        raise ValueError(f"{run}: {len(losses)} training losses on record; there must be 4")
    smoothed = list(accumulate(losses, lambda mean, loss: DECAY * mean + (1 - DECAY) * loss))
    return statistics.fmean(smoothed[-(len(smoothed) // 4) :])


def training_losses(run: Path) -> list[float]:
    rows = read_metrics(run) if run.is_dir() else []
    return [row["train/loss"] for row in rows if "train/loss" in row]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _output(*command: str) -> str | None:
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip() or None
    except (OSError, subprocess.CalledProcessError):
        return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
