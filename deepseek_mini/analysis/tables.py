"""The tables of a comparison, for the terminal and for Markdown."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepseek_mini.analysis import provenance
from deepseek_mini.analysis.comparison import CLOSE, percent
from deepseek_mini.analysis.figures import FIGURES
from deepseek_mini.analysis.runs import Run
from deepseek_mini.analysis.style import short

NOTHING = "\u2013"
MOST_NAMED = 3
"""Groups whose labels still fit above columns; more of them are numbered."""


@dataclass(frozen=True, slots=True)
class TextTable:
    title: str
    header: list[str]
    rows: list[list[str]]


def make_tables(result: dict[str, Any]) -> list[TextTable]:
    tables = [loss_table(result), figure_table(result), settings_table(result)]
    return [table for table in tables if table.rows]


def loss_table(result: dict[str, Any]) -> TextTable:
    """A row for each group: mean, spread over seeds, and the difference from the baseline."""
    metric, rows = result["metric"], []
    names = _names(result)
    for name, group in zip(names, result["groups"], strict=True):
        judged = (group["differences"] or {}).get(metric) if group["shown"] is not None else None
        mean, deviation = group["means"][metric], group["deviations"][metric]
        rows.append(
            [
                group["label"] if name == group["label"] else f"{name}  {group['label']}",
                ",".join(map(str, group["seeds"])) or NOTHING,
                NOTHING if mean is None else f"{mean:.4f}",
                NOTHING if deviation is None else f"{deviation:.4f}",
                f"{judged['mean_fraction']:+.2%}" if judged else NOTHING,
                f"{judged['low_fraction']:+.2%} to {judged['high_fraction']:+.2%}" if judged else NOTHING,
                percent(judged["detectable_fraction"]) if judged else NOTHING,
            ]
        )
    confidence = f"{1 - result['alpha']:.0%} interval"
    return TextTable(metric, ["", "seeds", "mean", "sd", "difference", confidence, "can show"], rows)


def figure_table(result: dict[str, Any]) -> TextTable:
    """A column for each group; a figure of which nothing is recorded is left out."""
    groups = result["groups"]
    rows = []
    for figure in FIGURES:
        means = [group["means"][figure.name] for group in groups]
        if any(mean is not None for mean in means):
            rows.append([figure.title, *(_number(figure.name, mean) for mean in means)])
    return TextTable("means over seeds", ["", *_names(result)], rows)


def settings_table(result: dict[str, Any]) -> TextTable:
    """Only the settings that differ."""
    labels = [group["label"] for group in result["groups"]]
    rows = [[key, *(str(values[label]) for label in labels)] for key, values in result["settings"].items()]
    return TextTable("settings that differ", ["", *_names(result)], rows)


def verdicts(result: dict[str, Any]) -> list[str]:
    """A line for each comparison, then for the ladder."""
    lines = []
    shares = {group["label"]: group["share_of_runs"] for group in result["groups"]}
    for group in result["groups"]:
        if group["baseline"]:
            names = {"no seed": group["missing_seeds"], "baseline has no seed": group["missing_in_baseline"]}
            missing = [f" [{name} {', '.join(map(str, seeds))}]" for name, seeds in names.items() if seeds]
            unequal = _unequal(shares[group["label"]], shares[group["baseline"]])
            line = f"{group['label']} against {group['baseline']}: {group['verdict']}"
            lines.append("".join([line, *missing, unequal]))
    scaling = result.get("scaling") or {"fits": {}, "trends": {}}
    for name, fit in scaling["fits"].items():
        then = fit["at_ten_times"]
        lines.append(
            f"{name}: loss falls as compute^-{fit['exponent']:.3f} ({fit['exponent_low']:.3f} to "
            f"{fit['exponent_high']:.3f}); at {then['flops']:.2g} FLOPs {then['loss']:.3f} "
            f"({then['low']:.3f} to {then['high']:.3f})"
        )
    return lines + [f"{name}: {_trend(trend)}" for name, trend in scaling["trends"].items()]


def _unequal(share: float | None, baseline: float | None) -> str:
    """A warning where one side is read near its end, with a low learning rate, and the other long before."""
    if share is None or baseline is None or abs(share - baseline) < CLOSE - 1:
        return ""
    return f" [unfair: read at {share:.0%} of its runs and {baseline:.0%} of the baseline's]"


def _trend(trend: dict[str, Any]) -> str:
    """The difference at the largest size by the line through all, then how it moves with compute."""
    end, slope = trend["at_largest"], trend["per_tenfold"]
    level = ("lower" if end["mean"] < 0 else "higher") if end["shown"] else "no difference shown"
    way = f"moves towards {'the variant' if slope['mean'] < 0 else 'the baseline'} with compute"
    return (
        f"by the trend over sizes {_interval(end)} at {end['flops']:.2g} FLOPs: {level}; {_interval(slope)} "
        f"for each tenfold compute: {way if slope['shown'] else 'no trend shown'}"
    )


def _interval(fact: dict[str, float]) -> str:
    return f"{fact['mean']:+.2%} ({fact['low']:+.2%} to {fact['high']:+.2%})"


def footnotes(result: dict[str, Any]) -> list[str]:
    """The method in words, and what to keep in mind."""
    variants = sum(group["baseline"] is not None for group in result["groups"])
    methods = {
        judged["method"]
        for group in result["groups"]
        if (judged := (group["differences"] or {}).get(result["metric"]))
    }
    lines = []
    if methods:
        together = f", all {variants} together (Bonferroni)" if variants > 1 else ""
        lines.append(
            f"Difference: variant minus baseline, {' and '.join(sorted(methods))}; Student's t intervals "
            f"of {1 - result['alpha']:.0%} confidence{together}. Can show: the smallest true difference that "
            f"a repetition finds {percent(result['power'])} of the time, by the spread seen and allowing for "
            "how little so few seeds tell of it."
        )
    if result.get("scaling"):
        lines += _of_fits(result)
    if result["budget"] is not None:
        cut = (
            "; a schedule planned for longer had not yet lowered its learning rate there: "
            "trainer.max_flops plans runs that end at equal FLOPs"
        )
        more = cut if result["cut_short"] else ""
        lines.append(f"Read at {short(result['budget'])} {result['at']}, the most that all reached{more}.")
    return lines + result["notes"]


def _of_fits(result: dict[str, Any]) -> list[str]:
    """How the lines over sizes are drawn, and what they take for granted."""
    confidence = f"{1 - result['alpha']:.0%}"
    lines = [
        "Loss against compute: a straight line in logarithms through the means of the sizes, without an "
        f"irreducible loss; t intervals of {confidence}, at ten times the largest compute for a run there."
    ]
    if result["scaling"]["trends"]:
        lines.append(
            "Trend: a straight line through the differences of all seeds and sizes against the logarithm of "
            f"compute; t intervals of {confidence} for its end and, again, for its slope. Each is taken as a "
            "draw of its own: an effect that is another at every size, with no trend, is shown too often."
        )
    return lines


def markdown(result: dict[str, Any], runs: list[Run], notes: Sequence[str] = ()) -> str:
    """All of it as a page: question, commands, verdicts, tables, pictures and provenance."""
    title, remarks = provenance.question(runs)
    commands = [*provenance.training_commands(runs), result.get("command")]
    known = [f"    {command}" for command in commands if command]
    others = other_differences(result)
    chance = [_of_others(result)] if others else []
    parts = [
        f"# {title}",
        remarks,
        "\n".join(known),
        _bullets([*verdicts(result), *others]),
    ]
    for table in make_tables(result):
        lines = [table.header, ["---"] + ["---:"] * (len(table.header) - 1), *table.rows]
        parts.append(f"## {table.title}\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines))
    parts += [f"![{Path(name).stem}]({name})" for name in result["plots"]]
    parts += ["## How", _bullets([*footnotes(result), *chance, *notes, *provenance.facts(runs)])]
    return "\n\n".join(part for part in parts if part) + "\n"


def other_differences(result: dict[str, Any]) -> list[str]:
    """The other figures of an evaluation whose interval leaves out zero."""
    titles = {figure.name: figure.title for figure in FIGURES}
    lines = []
    for group in result["groups"]:
        for name, judged in _others(group, result["metric"]).items():
            if judged["shown"]:
                word = "lower" if judged["mean"] < 0 else "higher"
                low, high = sorted((abs(judged["low"]), abs(judged["high"])))
                mean, *ends = (_number(name, abs(value)) for value in (judged["mean"], low, high))
                lines.append(f"{group['label']}: {titles[name]} is {word} by {mean} ({' to '.join(ends)})")
    return lines


def _others(group: dict[str, Any], metric: str) -> dict[str, Any]:
    """Differences in other figures than the one judged, but for bits per byte beside its loss."""
    told = {metric, "val/bpb"} if metric == "val/loss" else {metric}
    differences = group["differences"] or {}
    return {name: judged for name, judged in differences.items() if judged and name not in told}


def _of_others(result: dict[str, Any]) -> str:
    """How far to trust `other_differences`."""
    looked_at = sum(len(_others(group, result["metric"])) for group in result["groups"])
    return (
        f"The lines on other figures are what stands out among {looked_at} differences, without a correction "
        f"for that number: without any effect each has a chance of {percent(result['alpha_per_comparison'])}."
    )


def _bullets(lines: Sequence[str]) -> str:
    wrapper = textwrap.TextWrapper(118, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False)
    return "\n".join(map(wrapper.fill, lines))


def _names(result: dict[str, Any]) -> list[str]:
    """Heads of the groups' columns."""
    labels = [group["label"] for group in result["groups"]]
    return labels if len(labels) <= MOST_NAMED else [f"({i})" for i in range(1, len(labels) + 1)]


def _number(name: str, value: float | None) -> str:
    if value is None:
        return NOTHING
    if name in ("val/loss", "val/bpb", "val/mtp_loss"):
        return f"{value:.4f}"
    return percent(value) if name == "val/mtp_acceptance" else short(value)
