"""GPU-hours, days and dollars of a full training run, with bands, from a finished run of this package.

    python scripts/extrapolate.py RUN [--target v3_671b --tokens 14.8e12 --cluster h800_2048 --json]

RUN is the directory of a run. Writes RUN/extrapolation.html, one page with plots.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from deepseek_mini.compose import compose
from deepseek_mini.cost.extrapolate import Extrapolation, extrapolate
from deepseek_mini.cost.layer_profile import REFERENCE, read_layer_profile
from deepseek_mini.cost.plan import make_plan, parse_cluster
from deepseek_mini.cost.prices import Extras, price_band
from deepseek_mini.cost.run_evidence import read_run
from deepseek_mini.cost.shape import shape_of
from deepseek_mini.cost.summary import as_json, carried_over_label
from deepseek_mini.ending import exit_code

REPORT = "extrapolation.html"


def main(argv: list[str]) -> int:
    arguments = parser().parse_args(argv)
    return exit_code(lambda: work(arguments))


def work(arguments: argparse.Namespace) -> None:
    result = run(arguments)
    report = write_report(arguments, result)
    if arguments.json:
        print(json.dumps(as_json(result)))
    else:
        print_result(result, report)


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(prog="extrapolate.py", description=(__doc__ or "").splitlines()[0])
    result.add_argument("run", type=Path, metavar="RUN", help="directory of a run, such as runs/tiny")
    result.add_argument("--target", default="v3_671b", help="a file of configs/model (default v3_671b)")
    result.add_argument("--tokens", type=float, help="of pre-training (default: the target's recipe)")
    result.add_argument("--cluster", default="h800_2048", help="device_count (default h800_2048)")
    result.add_argument("--batch", type=int, help="sequences per optimizer step (default: the recipe)")
    result.add_argument("--pp", type=int, help="pipeline stages (default: the target's own plan, else 1)")
    result.add_argument("--ep", type=int, help="GPUs that share the experts (default: likewise)")
    result.add_argument(
        "--schedule", help="1f1b, interleaved, zb1p, dualpipe or dualpipe_v (default: likewise)"
    )
    result.add_argument("--profile", type=Path, default=REFERENCE, help="JSON of scripts/benchmark.py layers")
    result.add_argument(
        "--pretraining-only", action="store_true", help="no context extension, no post-training"
    )
    result.add_argument(
        "--price", type=float, help="dollars per GPU-hour (default: the device's rental band)"
    )
    result.add_argument("--staff", type=float, default=0.0, help="dollars (default 0)")
    result.add_argument("--data", type=float, default=0.0, help="dollars (default 0)")
    result.add_argument(
        "--failed-runs", type=float, default=0.0, help="share of the run's GPU-hours (default 0)"
    )
    result.add_argument(
        "--research", type=float, default=0.0, help="multiple of the run's GPU-hours (default 0)"
    )
    result.add_argument("--report", type=Path, help=f"where the page goes (default RUN/{REPORT})")
    result.add_argument("--no-report", action="store_true", help="write no page")
    result.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    return result


def run(arguments: argparse.Namespace) -> Extrapolation:
    """Everything but printing. Raises ValueError where the user's input is at fault."""
    extras = Extras(arguments.staff, arguments.data, arguments.failed_runs, arguments.research)
    evidence = read_run(arguments.run)
    cluster = parse_cluster(arguments.cluster)
    price = price_band(cluster.gpu.name, arguments.price)
    profile = read_layer_profile(arguments.profile)
    plan = make_plan(
        arguments.target,
        compose([f"model={arguments.target}"]).config,
        cluster,
        tokens=arguments.tokens,
        batch_size=arguments.batch,
        pp=arguments.pp,
        ep=arguments.ep,
        schedule=arguments.schedule,
        later_stages=not arguments.pretraining_only,
    )
    profile_shape = shape_of(compose([f"model={profile.model}"]).config.model)
    v3 = compose(["model=v3_671b"]).config.model
    return extrapolate(plan, evidence, profile, profile_shape, v3, price, extras)


def write_report(arguments: argparse.Namespace, result: Extrapolation) -> Path | None:
    if arguments.no_report:
        return None
    from deepseek_mini.cost.report import make_report  # matplotlib takes a second

    path = arguments.report or arguments.run / REPORT
    try:
        path.write_text(make_report(result), encoding="utf-8")
    except OSError as error:
        raise ValueError(
            f"{path}: {error.strerror}; choose another place with --report, or --no-report"
        ) from error
    return path


def print_result(result: Extrapolation, report: Path | None) -> None:
    from deepseek_mini.cost.report import (
        convention_rows,
        extra_rows,
        ledger_rows,
        line_rows,
        per_trillion,
        tier_rows,
    )

    plan, console = result.plan, Console(highlight=False)
    title = f"{plan.model}, {plan.tokens / 1e12:g}T tokens, {plan.cluster.name}: GPU-hours of pre-training"
    rows = [row[:5] for row in tier_rows(result)]
    console.print(_table(title, rows, "P10", "P50", "P90", "per T tokens"))
    for tier in result.tiers:
        rate = f"{per_trillion(tier, plan)}; " if tier.hours else ""
        console.print(f"{tier.title}: {rate}{tier.evidence}.", style="dim")
    console.print(f"this run's own MFU carried over: {carried_over_label(result.run)}.\n", style="dim")
    if rows := [*line_rows(result), *extra_rows(result)]:
        console.print(_table("the run, line by line, GPU-hours", rows, "P10", "P50", "P90", "dollars, P50"))
        console.print(f"{result.price.text}.\n", style="dim")
    title = "MFU of the P50 in every convention"
    console.print(_table(title, convention_rows(result), "of the BF16 peak", "of the FP8 peak"))
    title = f"this run: {result.run.run}, {result.run.devices} x {result.run.device}"
    console.print(_table(title, ledger_rows(result), "device-hours", "share", "tokens"))
    if report:
        console.print(f"report: {report}")


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
