"""Does it matter? Runs that differ in their settings, compared seed by seed.

    python scripts/compare.py RUN RUN ... [--at end|tokens|flops|seconds] [--family KEY] [--json]

A RUN is a run directory or a folder of them; the first one's settings are the baseline. Losses are compared
by pairs of equal seeds: the same data in the same order, and the same start of all shared weights. Tables go
to the screen, and with curves as PNG and a page of Markdown into the folder --out.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any, get_args


class UserError(Exception):
    """The user's to mend. A ValueError of the drawing is ours, and keeps its traceback."""


def main(argv: list[str]) -> int:
    arguments = _parse(argv)
    try:
        result = compare_runs(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    if arguments.json:
        print(json.dumps(result))
    else:
        print_tables(result)
    return 0


def compare_runs(arguments: argparse.Namespace) -> dict[str, Any]:
    """What `--json` prints; draws into --out. Raises UserError for what the user can mend."""
    from deepseek_mini.analysis.comparison import Design, compare
    from deepseek_mini.analysis.groups import group_runs
    from deepseek_mini.analysis.ladder import choose_baselines, fit_families
    from deepseek_mini.analysis.runs import find_runs, read_run

    try:
        if not 0 < arguments.alpha < 1:
            raise ValueError(f"--alpha {arguments.alpha} must lie between 0 and 1")
        groups = group_runs([read_run(path) for path in find_runs(arguments.runs)])
        baselines = choose_baselines(groups, arguments.baseline, arguments.family)
        design = Design(arguments.metric, arguments.at, arguments.alpha)
        result = compare(groups, lambda group: baselines[group.label], design)
    except ValueError as error:
        raise UserError(str(error)) from error
    result["scaling"] = fit_families(result, groups, arguments.family)
    result["out"], result["plots"] = None, []
    folder = arguments.out or (None if arguments.json else Path("comparison"))
    if folder is not None:
        pairs = [(b, g) for g in groups if (b := baselines[g.label]) is not g]
        write_pictures(result, groups, pairs, folder)
    return result


def write_pictures(result: dict[str, Any], groups: list, pairs: list, folder: Path) -> None:
    """curves.png, differences.png, scaling.png where there is a ladder, and comparison.md."""
    from deepseek_mini.analysis import curves, tables

    metric, alpha = result["metric"], result["alpha_per_comparison"]
    try:
        drawn: list[Path | None] = [curves.draw_curves(groups, metric, folder / "curves.png")]
        if pairs:
            drawn.append(curves.draw_differences(pairs, metric, alpha, folder / "differences.png"))
        if result["scaling"]:
            fits = result["scaling"]["fits"]
            drawn.append(curves.draw_scaling(fits, metric, result["alpha"], folder / "scaling.png"))
        result["out"], result["plots"] = str(folder), [path.name for path in drawn if path]
        (folder / "comparison.md").write_text(tables.markdown(result))
    except OSError as error:
        raise UserError(f"--out {folder} cannot be written ({error}); name another folder") from error


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
        console.print(f"{result['out']}/: comparison.md, {', '.join(result['plots'])}", markup=False)


def _parse(argv: list[str]) -> argparse.Namespace:
    from deepseek_mini.analysis.figures import CURVES, At

    parser = argparse.ArgumentParser(prog="compare.py", description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN", help="a run directory, or a folder of them")
    add("--baseline", type=Path, metavar="RUN", help="compare with this run's settings, not the first one's")
    add("--metric", choices=CURVES[:3], default="val/loss", help="what the verdict is on (val/loss)")
    add("--at", choices=get_args(At), default="end", help="where: at the end, or at the most that all spent")
    add("--family", action="append", default=[], metavar="KEY", help="of a ladder: the setting under test")
    add("--alpha", type=float, default=0.05, help="chance of any false difference in the table (0.05)")
    add("--out", type=Path, metavar="DIR", help="for pictures and page (comparison/; none with --json)")
    add("--json", action="store_true", help="print one JSON object and nothing else")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
