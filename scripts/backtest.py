"""The cost model against published figures: whole training runs, or pairs of tokens/s and TFLOPS.

    python scripts/backtest.py CSV [--json]

CSV has the columns of deepseek_mini/cost/data/published_runs.csv or of nvidia_throughput.csv there. Each run
is predicted without any run of its own organisation, from the others in the file and those that the package
ships.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from deepseek_mini.cost.backtest import bootstrap, coverage, score_runs, summarise
from deepseek_mini.cost.runs import Run, parse_runs
from deepseek_mini.cost.tables import read_csv, read_table
from deepseek_mini.cost.text import hours_text
from deepseek_mini.cost.throughput import score_pairs, summarise_pairs
from deepseek_mini.ending import exit_code


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="backtest.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("csv", type=Path, metavar="CSV", help="published runs, or throughput pairs")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    arguments = parser.parse_args(argv)
    return exit_code(lambda: work(arguments))


def work(arguments: argparse.Namespace) -> None:
    """Score the file and print. Raises ValueError naming the file and what is wrong in it."""
    rows = read_csv(arguments.csv)
    pairs = "model_tflops_per_gpu" in rows[0]
    try:
        result = backtest_pairs(rows) if pairs else backtest_runs(rows)
    except ValueError as error:
        raise ValueError(f"{arguments.csv}: {error}") from error
    if arguments.json:
        print(json.dumps(result))
    elif pairs:
        print_pairs(result)
    else:
        print_runs(result)


def backtest_runs(rows: list[dict[str, str]]) -> dict[str, Any]:
    """What `--json` prints for runs. Raises ValueError if fewer than one can be scored."""
    runs, excluded = parse_runs(rows)
    if not runs:
        raise ValueError(
            "no run can be scored: all are marked as not clean, or lack hours, tokens or dimensions"
        )
    scored, baselines = score_runs(runs, with_shipped(runs))
    intervals = bootstrap(scored, baselines)
    return {
        **summarise(scored),
        **coverage(scored),
        "n_runs": len(scored),
        "n_organisations": len({run.org for run in runs}),
        "intervals": intervals.pop("model"),
        "baselines": {name: {**summarise(b), **intervals[name]} for name, b in baselines.items()},
        "rows": [asdict(row) for row in scored],
        "excluded": [asdict(row) for row in excluded],
    }


def with_shipped(runs: Sequence[Run]) -> list[Run]:
    """The file's runs, and those of the package that it lacks."""
    names = {run.model.lower() for run in runs}
    shipped, _ = parse_runs(read_table("published_runs"))
    return [*runs, *(run for run in shipped if run.model.lower() not in names)]


def backtest_pairs(rows: list[dict[str, str]]) -> dict[str, Any]:
    """What `--json` prints for throughput pairs."""
    pairs = score_pairs(rows)
    return {
        **summarise_pairs(pairs),
        "rows": [{**asdict(pair), "deviation": pair.deviation} for pair in pairs],
    }


def print_runs(result: dict[str, Any]) -> None:
    console = Console(highlight=False)
    rows = [
        (
            row["model"],
            hours_text(row["actual"]),
            hours_text(row["predicted"]),
            f"{row['predicted'] / row['actual'] - 1:+.0%}",
            f"{hours_text(row['low'])} - {hours_text(row['high'])}",
            "" if row["low"] <= row["actual"] <= row["high"] else "out",
        )
        for row in result["rows"]
    ]
    title = "GPU-hours, each run predicted without its own organisation"
    console.print(_table(title, rows, "published", "predicted", "error", "80% band", ""))
    rows = [_error_row("this model", result, result["intervals"])]
    rows += [_error_row(name, row, row) for name, row in result["baselines"].items()]
    console.print(_table("absolute error, 90% interval over organisations", rows, "median", "P90", "bias"))
    low, high = result["coverage80_interval"]
    console.print(
        f"{result['n_runs']} runs of {result['n_organisations']} organisations. The 80% bands hold "
        f"{result['coverage80']:.0%} of the runs (90% interval {low:.0%} to {high:.0%}); they are the "
        f"prediction times or over {result['band_factor']:.2f}."
    )
    for row in result["excluded"]:
        console.print(f"not scored: {row['model']} ({row['org']}): {row['reason']}", style="dim")


def print_pairs(result: dict[str, Any]) -> None:
    console = Console(highlight=False)
    rows = [
        (
            f"{row['model']}, {row['system']}, {row['container'].split()[0] if row['container'] else ''}",
            "" if row["vendor"] is None else f"{row['vendor'] / 1e9:.2f}",
            "" if row["ours"] is None else f"{row['ours'] / 1e9:.2f}",
            "" if row["deviation"] is None else f"{row['deviation']:+.2%}",
            "excluded" if row["excluded"] else "",
        )
        for row in result["rows"]
    ]
    console.print(_table("training GFLOP per token", rows, "vendor", "ours", "deviation", ""))
    console.print(
        f"{result['n_scored']} pairs: median absolute deviation {result['median_abs_dev']:.3%}, "
        f"{result['within_half_percent']:.1%} within 0.5%, worst {result['worst']:.2%}."
    )
    reasons: dict[tuple[str, str], int] = {}
    for row in result["rows"]:
        if row["excluded"]:
            key = (row["model"], row["excluded"])
            reasons[key] = reasons.get(key, 0) + 1
    for (model, reason), count in reasons.items():
        console.print(f"not scored: {count} x {model}: {reason}", style="dim")


def _error_row(name: str, errors: dict[str, Any], intervals: dict[str, Any]) -> tuple[str, ...]:
    shown = [
        f"{errors[key]:.1%} ({' - '.join(f'{100 * end:.1f}' for end in intervals[key + '_interval'])})"
        for key in ("mdape", "p90")
    ]
    return (name, *shown, f"{errors['bias']:+.1%}")


def _table(title: str, rows: Sequence[Sequence[str]], *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    table.add_column("")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
