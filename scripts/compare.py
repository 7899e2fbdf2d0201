"""Does it matter? Runs that differ in their settings, compared seed by seed.

    python scripts/compare.py RUN RUN ... [--at end|tokens|flops|seconds] [--page FILE.md] [--json]

A RUN is a run directory or a folder of them; the first one's settings are the baseline. Losses are compared
by pairs of equal seeds: the same data in the same order, and the same start of all shared weights. Sizes of a
ladder are found, and a variant is judged by its trend over them. Tables go to the screen, and with curves as
PNG into a page of Markdown: comparison.md in the folder --out, or the file --page.
"""

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any, get_args

from deepseek_mini.ending import UserError, exit_code


def main(argv: list[str]) -> int:
    arguments = _parse(argv)
    return exit_code(lambda: tell(arguments), UserError)


def tell(arguments: argparse.Namespace) -> None:
    result = compare_runs(arguments)
    if arguments.json:
        print(json.dumps(result))
    else:
        print_tables(result)


def compare_runs(arguments: argparse.Namespace) -> dict[str, Any]:
    """What `--json` prints; draws into --out. Raises UserError for what the user can mend."""
    from deepseek_mini.analysis.comparison import Design, compare
    from deepseek_mini.analysis.groups import group_runs
    from deepseek_mini.analysis.ladder import choose_baselines, fit_families, infer_family
    from deepseek_mini.analysis.runs import read_runs

    try:
        if not 0 < arguments.alpha < 1:
            raise ValueError(f"--alpha {arguments.alpha} must lie between 0 and 1")
        runs, notes = read_runs(arguments.runs)
        groups = group_runs(runs)
        family = arguments.family or (None if arguments.baseline else infer_family(groups))
        baselines = choose_baselines(groups, arguments.baseline, family)
        design = Design(arguments.metric, arguments.at, arguments.alpha)
        result = compare(groups, lambda group: baselines[group.label], design)
    except ValueError as error:
        raise UserError(str(error)) from error
    result["scaling"] = fit_families(result, groups, family or [])
    result["notes"] += notes
    result["page"], result["plots"] = None, []
    if page := _page(arguments):
        result["command"] = _command(arguments) if arguments.page else None
        pairs = [(b, g) for g in groups if (b := baselines[g.label]) is not g]
        write_page(result, groups, pairs, page, arguments.note)
    return result


def _command(arguments: argparse.Namespace) -> str:
    """The command that writes the page from the runs, but for its notes."""
    from deepseek_mini.analysis.comparison import Design

    words, usual = ["python", "scripts/compare.py", *map(str, arguments.runs)], Design()
    if arguments.baseline:
        words += ["--baseline", str(arguments.baseline)]
    for name in ("metric", "at", "alpha"):
        if (value := getattr(arguments, name)) != getattr(usual, name):
            words += [f"--{name}", str(value)]
    for key in arguments.family:
        words += ["--family", key]
    return shlex.join([*words, "--page", str(arguments.page)])


def _page(arguments: argparse.Namespace) -> Path | None:
    """Where the page goes; None for none."""
    if arguments.page:
        return arguments.page
    folder = arguments.out or (None if arguments.json else Path("comparison"))
    return folder and folder / "comparison.md"


def write_page(result: dict[str, Any], groups: list, pairs: list, page: Path, notes: list[str]) -> None:
    """The page, and beside it curves, differences, and the scaling fit where there is a ladder, as PNG."""
    from deepseek_mini.analysis import curves, tables

    metric, alpha = result["metric"], result["alpha_per_comparison"]
    prefix = "" if page.name == "comparison.md" else f"{page.stem}_"
    folder = page.parent
    try:
        drawn: list[Path | None] = [curves.draw_curves(groups, metric, folder / f"{prefix}curves.png")]
        if pairs:
            path = folder / f"{prefix}differences.png"
            drawn.append(curves.draw_differences(pairs, metric, alpha, path))
        if result["scaling"]:
            path = folder / f"{prefix}scaling.png"
            drawn.append(curves.draw_scaling(result["scaling"], metric, result["alpha"], path))
        result["page"], result["plots"] = str(page), [path.name for path in drawn if path]
        runs = [run for group in groups for run in group.runs.values()]
        page.write_text(tables.markdown(result, runs, notes), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{page} cannot be written ({error}); name another place") from error


def print_tables(result: dict[str, Any]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from deepseek_mini.analysis import tables

    console = Console(highlight=False)
    for text in tables.make_tables(result):
        table = Table(title=text.title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
        for i, column in enumerate(text.header):
            table.add_column(column, justify="right" if i else "left", overflow="fold")
        for row in text.rows:
            table.add_row(*row)
        console.print(table)
    for line in tables.verdicts(result):
        console.print(line, style="bold", markup=False)
    for line in tables.footnotes(result):
        console.print(line, style="dim", markup=False)
    if result["plots"]:
        console.print(f"{result['page']}, {', '.join(result['plots'])}", markup=False)


def _parse(argv: list[str]) -> argparse.Namespace:
    from deepseek_mini.analysis.comparison import Design
    from deepseek_mini.analysis.figures import CURVES, SMOOTHED, At

    parser = argparse.ArgumentParser(prog="compare.py", description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN", help="a run directory, or a folder of them")
    usual = Design()
    parser.set_defaults(metric=usual.metric, at=usual.at, alpha=usual.alpha)
    add("--baseline", type=Path, metavar="RUN", help="compare with this run's settings, not the first one's")
    add("--metric", choices=(*CURVES[:3], SMOOTHED), help="what the verdict is on (val/loss)")
    add("--at", choices=get_args(At), help="where: at the end, or at the most that all spent")
    add("--family", action="append", default=[], metavar="KEY", help="of a ladder: the setting under test")
    add("--alpha", type=float, help="chance of any false difference in the table (0.05)")
    add("--out", type=Path, metavar="DIR", help="for pictures and page (comparison/; none with --json)")
    add("--page", type=Path, metavar="FILE.md", help="for a page to keep, its pictures beside it")
    add("--note", action="append", default=[], metavar="TEXT", help="a line for the foot of the page")
    add("--json", action="store_true", help="print one JSON object and nothing else")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
