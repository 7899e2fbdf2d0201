"""Speed and memory, side by side with peers on the same machine.

    python scripts/benchmark.py [NAME] [key=value ...] [--shape MODEL] [--rounds N] [--json]

Without NAME all benchmarks run. `key=value` are the settings of train.py; the default model is tiny.
"""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.data import data
from benchmarks.generation import generation
from benchmarks.kernels import kernels
from benchmarks.layers import layers
from benchmarks.moe_layer import moe_layer
from benchmarks.result import Result, Unavailable
from benchmarks.scaling import scaling
from benchmarks.startup import startup
from benchmarks.training import training
from deepseek_mini.compose import load_config
from deepseek_mini.config import Config
from deepseek_mini.cost.hardware import choose_device, device_name
from deepseek_mini.ending import exit_code
from deepseek_mini_kernels.roofline import Measured
from deepseek_mini_kernels.roofline import table as roofline_table

Benchmark = Callable[[Config, int, Callable[[str], None]], list[Result]]
"""From a config, the number of rounds and a place for progress lines to results."""

BENCHMARKS: dict[str, Benchmark] = {
    "training": training,
    "moe_layer": moe_layer,
    "generation": generation,
    "layers": layers,
    "data": data,
    "scaling": scaling,
    "startup": startup,
    "kernels": kernels,
}


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="benchmark.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("words", nargs="*", metavar="NAME | key=value", help=f"NAME: {', '.join(BENCHMARKS)}")
    parser.add_argument("--shape", metavar="MODEL", help="the same as model=MODEL, as in --shape v3_671b")
    parser.add_argument("--rounds", type=int, default=7, help="measured repeats (default 7)")
    parser.add_argument(
        "--compile", action="store_true", help="training: time transformers under torch.compile too (minutes)"
    )
    parser.add_argument(
        "--profile", type=Path, help="layers: where its JSON goes (default runs/layers_MODEL.json)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    arguments = parser.parse_intermixed_args(argv)
    names = [word for word in arguments.words if "=" not in word] or list(BENCHMARKS)
    if unknown := [name for name in names if name not in BENCHMARKS]:
        parser.error(f"there is no benchmark {unknown[0]}; there is {', '.join(BENCHMARKS)}")
    if arguments.rounds < 1:
        parser.error(f"--rounds={arguments.rounds} must be at least 1")
    settings = [word for word in arguments.words if "=" in word]
    settings += [f"model={arguments.shape}"] if arguments.shape else []
    benchmarks = BENCHMARKS | {
        "training": partial(training, compile_peers=arguments.compile),
        "layers": partial(layers, path=arguments.profile),
        "startup": partial(startup, settings=settings),
    }
    return exit_code(lambda: measure(names, benchmarks, settings, arguments))


def measure(
    names: list[str], benchmarks: dict[str, Benchmark], settings: list[str], arguments: argparse.Namespace
) -> None:
    """Run benchmarks and print their results; one that was not asked for by name may be unavailable."""
    device, _ = choose_device(load_config(settings).device)
    results = []
    for name in names:
        try:
            results += benchmarks[name](load_config(settings), arguments.rounds, say)
        except Unavailable as error:
            if name in arguments.words:
                raise
            say(f"{name} is left out: {error}")
    report = {"device": describe_device(device), "results": [asdict(result) for result in results]}
    if arguments.json:
        print(json.dumps(report))
        return
    print_table(report["device"], results)
    if (measured := Measured.read(report)).seconds:
        print(roofline_table(measured))


def say(text: str) -> None:
    """Progress, kept apart from the results."""
    print(text, file=sys.stderr, flush=True)


def describe_device(device: torch.device) -> str:
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    return f"{device_name(device)}{threads}, torch {torch.__version__}"


def print_table(title: str, results: list[Result]) -> None:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("benchmark", "ours", "peer", "ratio"):
        first = column == "benchmark"
        table.add_column(column, justify="left" if first else "right", no_wrap=not first)
    peer = None
    for result in results:
        if result.peer_name != peer:
            table.add_section()
            table.add_row(f"[bold]against {result.peer_name}")
            peer = result.peer_name
        values = (_number(result.ours), _number(result.peer), _number(result.ratio))
        table.add_row(f"{result.name} [dim]{result.unit}", *values)
    Console(width=max(Console().width, 130)).print(table)


def _number(value: float | None) -> str:
    if value is None:
        return "n/a"
    return f"{value:,.0f}" if 1000 <= value < 1e6 else f"{value:.3g}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
