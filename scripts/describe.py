"""Parameters by component, FLOPs per token in every convention, and key-value cache of a model.

    python scripts/describe.py v3_671b [key=value ...] [--json]

FLOPs are at data.sequence_length if it is given, else at 4096 tokens, or model.max_seq_len if that is less.
"""

import argparse
import json
import sys
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from deepseek_mini.compose import Composed, ConfigError, compose
from deepseek_mini.cost.flops import (
    active_params,
    count_active_parameters,
    count_parameters,
    flops_by_convention,
    kv_cache_bytes_per_token,
    mtp_params,
    total_params,
)
from deepseek_mini.ending import exit_code

SEQUENCE_LENGTH = 4096
"""Context of V3's pre-training, at which published figures are."""


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="describe.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", help="a file of configs/model: tiny, small, v3_671b, ...")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as for train.py")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    arguments = parser.parse_intermixed_args(argv)
    return exit_code(lambda: work(arguments), ConfigError)


def work(arguments: argparse.Namespace) -> None:
    composed = compose([f"model={arguments.model}", *arguments.overrides])
    description = describe(composed)
    if arguments.json:
        print(json.dumps(description))
    else:
        print_tables(composed, description)


def sequence_length(composed: Composed) -> int:
    """The length at which attention is counted."""
    if "data.sequence_length" in composed.settings:
        return composed.config.data.sequence_length
    return min(SEQUENCE_LENGTH, composed.config.model.max_seq_len)


def describe(composed: Composed) -> dict[str, Any]:
    """What `--json` prints; parameters without MTP unless named."""
    model = composed.config.model
    return {
        "total_params": total_params(model),
        "active_params": active_params(model),
        "mtp_params": mtp_params(model),
        "params": count_parameters(model),
        "flops_per_token": flops_by_convention(model, sequence_length(composed)),
        "kv_cache_bytes_per_token": kv_cache_bytes_per_token(model),
    }


def print_tables(composed: Composed, description: dict[str, Any]) -> None:
    model = composed.config.model
    active = count_active_parameters(model)
    parameters = _table(f"{composed.model}: parameters", "total", "active per token")
    for name, n in description["params"].items():
        parameters.add_row(name, f"{n:,}", f"{active[name]:,}")
    parameters.add_section()
    parameters.add_row("total", f"{description['total_params']:,}", f"{description['active_params']:,}")
    parameters.add_row("MTP, apart", f"{description['mtp_params']:,}", "")

    length = sequence_length(composed)
    flops = _table(f"training FLOPs per token, at {length} tokens", "GFLOP")
    for name, n in description["flops_per_token"].items():
        flops.add_row(name.replace("_", " "), f"{n / 1e9:,.3f}")

    cache = _table("key-value cache per token, BF16", "bytes", "beside mla")
    kinds = description["kv_cache_bytes_per_token"]
    for name, n in kinds.items():
        own = " (this model's)" if name == model.attention else ""
        cache.add_row(name + own, f"{n:,}", f"{n / kinds['mla']:.3g}x")

    console = Console()
    for table in (parameters, flops, cache):
        console.print(table)
    console.print(
        "FLOPs: matrix products, forward and backward; head in; embedding, gate and\n"
        "MTP out unless named; causal counts half of the attention matrix; six n is\n"
        "6 x active parameters.",
        style="dim",
    )


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, min_width=58)
    table.add_column("", ratio=1)
    for column in columns:
        table.add_column(column, justify="right")
    return table


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
