"""From groups of runs to differences, intervals and plain verdicts."""

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from deepseek_mini.analysis.figures import FIGURES, JUDGED, At, common_budget, run_figures, spent
from deepseek_mini.analysis.groups import Group, differing_settings
from deepseek_mini.analysis.runs import Run
from deepseek_mini.analysis.statistics import Difference, paired_difference, unpaired_difference

CLOSE = 1.02
"""A run that spent no more than so many times the budget was planned for it."""

Table = dict[int, dict[str, float | None]]
"""Figures by seed."""


@dataclass(frozen=True, slots=True)
class Design:
    """How differences are judged."""

    metric: str = "val/loss"
    at: At = "end"
    alpha: float = 0.05
    """Chance that any verdict of the table shows a difference where there is none."""
    power: float = 0.8
    """Chance with which the detectable difference would have been shown."""


def compare(groups: list[Group], baseline: Callable[[Group], Group], design: Design) -> dict[str, Any]:
    """What `compare.py --json` prints, but for plots and scaling: groups, differences, verdicts, notes.

    `baseline` gives the group that another is compared with, or itself. Raises ValueError if corpora differ.
    """
    runs = [run for group in groups for run in group.runs.values()]
    notes = check_comparable(runs) + [note for group in groups for note in group.repeats]
    if design.metric != "val/bpb" and _differ(runs, lambda run: _tokenizer(run)):
        design = replace(design, metric="val/bpb")
        notes.append("tokenizers differ: judged by bits per byte, which does not depend on them")
    budget = common_budget(runs, design.at)
    tables = {group.label: _figures(group, design, budget, notes) for group in groups}
    variants = sum(baseline(group) is not group for group in groups)
    alpha = design.alpha / max(variants, 1)
    rows = []
    for group in groups:
        table, base = tables[group.label], baseline(group)
        row = _row(group, table, groups, design.metric)
        row["missing_seeds"] = [seed for seed in tables[base.label] if seed not in table]
        row["missing_in_baseline"] = [seed for seed in table if seed not in tables[base.label]]
        row["baseline"] = None if base is group else base.label
        row["share_of_runs"] = _share(group, design.at, budget) if budget else None
        if base is not group:
            sides = tables[base.label], table
            design_of_one = replace(design, alpha=alpha)
            judged = {name: difference(*sides, name, alpha) for name in JUDGED}
            row |= judge(judged[design.metric], sides, design_of_one)
            row["differences"] = {
                name: _as_json(judged[name], sides[0], name, design_of_one) for name in JUDGED
            }
        rows.append(row)
    return {
        **asdict(design),
        "alpha_per_comparison": alpha,
        "budget": budget,
        "cut_short": budget is not None and any(spent(r, design.at)[1][-1] > CLOSE * budget for r in runs),
        "corpus": runs[0].corpus,
        "groups": rows,
        "settings": {
            key: dict(zip(tables, values, strict=True)) for key, values in differing_settings(groups).items()
        },
        "notes": notes,
    }


def difference(base: Table, variant: Table, name: str, alpha: float) -> Difference | None:
    """Variant minus baseline: by pairs where two seeds or more are shared, else between the two sides."""
    known = [{s: v for s, f in side.items() if (v := f[name]) is not None} for side in (base, variant)]
    shared = [seed for seed in known[0] if seed in known[1]]
    if len(shared) >= 2:
        return paired_difference([known[1][s] - known[0][s] for s in shared], alpha)
    if not shared and min(map(len, known)) >= 2:
        return unpaired_difference(list(known[0].values()), list(known[1].values()), alpha)
    return None


def judge(judged: Difference | None, sides: tuple[Table, Table], design: Design) -> dict[str, Any]:
    """Whether the difference is shown, and the verdict in words."""
    ends = [{figures["tokens"] or 0 for figures in side.values()} for side in sides]
    if design.at == "end" and ends[0] != ends[1]:
        amounts = [f"{max(end, default=0):,.0f}" for end in reversed(ends)]
        way = "--at tokens, flops or seconds compares at a common budget"
        return {"shown": None, "verdict": f"not compared: {amounts[0]} tokens against {amounts[1]}; {way}"}
    if judged is None:
        verdict = "no verdict: it takes two seeds in common, or two on each side and none in common"
        return {"shown": None, "verdict": _of_one_seed(sides, design.metric) + verdict}
    scale = _mean(sides[0], design.metric)
    low, high, mean = judged.low / scale, judged.high / scale, judged.mean / scale
    if judged.low == judged.high == 0:
        return {"shown": False, "verdict": "the same to the last digit in every seed"}
    if judged.shown:
        small, large = sorted((abs(low), abs(high)))
        word = "lower" if mean < 0 else "higher"
        return {
            "shown": True,
            "verdict": f"{word} by {percent(abs(mean))} ({percent(small)} to {percent(large)})",
        }
    could = judged.detectable(design.alpha, design.power) / scale
    return {
        "shown": False,
        "verdict": f"no difference shown; this design could have shown {percent(could)}",
    }


def _of_one_seed(sides: tuple[Table, Table], metric: str) -> str:
    """What can be said where the two sides share a single seed."""
    shared = [seed for seed in sides[0] if seed in sides[1]]
    values = [side[seed][metric] for seed in shared for side in sides]
    if len(values) != 2 or values[0] is None or values[1] is None:
        return ""
    return f"{values[1] / values[0] - 1:+.2%} with seed {shared[0]}; "


def percent(fraction: float) -> str:
    """Two digits: 0.81%, 12%."""
    return f"{100 * fraction:.2g}%" if fraction < 1 else f"{100 * fraction:.0f}%"


def check_comparable(runs: list[Run]) -> list[str]:
    """Notes on what makes figures less comparable. Raises ValueError if the runs' corpora differ."""
    corpora = {run.corpus: run.path for run in runs if run.corpus}
    if len(corpora) > 1:
        named = ", ".join(f"{path} on {corpus}" for corpus, path in corpora.items())
        raise ValueError(f"losses on different corpora cannot be compared: {named}; give runs of one corpus")
    notes = [f"{run.path}: {run.summary['exit_reason']}" for run in runs if _unfinished(run)]
    differences: list[tuple[str, Callable[[Run], Any]]] = [
        ("held-out sequences differ (data.sequence_length, trainer.eval_sequences)", _held_out),
        ("devices differ: speed and memory compare machines", lambda run: run.environment.get("device")),
        ("precision differs", lambda run: str(run.environment.get("precision", "")).split(" ")[0]),
        ("code differs (git_commit, git.diff)", lambda run: run.environment.get("git_commit")),
        ("PyTorch versions differ", lambda run: run.environment.get("torch")),
    ]
    notes += [text for text, fact in differences if _differ(runs, fact)]
    if any(run.corpus is None for run in runs):
        notes.append("some runs have no corpus_hash in environment.json: their text is taken on trust")
    return notes


def _figures(group: Group, design: Design, budget: float | None, notes: list[str]) -> Table:
    """Figures by seed, without runs that stopped before the others of their group."""
    table = {seed: run_figures(run, design.at, budget) for seed, run in group.runs.items()}
    if design.at != "end":
        return table
    longest = max(figures["tokens"] or 0 for figures in table.values())
    for seed, figures in list(table.items()):
        if figures["tokens"] != longest or figures[design.metric] is None:
            del table[seed]
            tokens = figures["tokens"] or 0
            notes.append(f"{group.label}: seed {seed} is left out, it ends at {tokens:,.0f} tokens")
    return table


def _share(group: Group, at: At, budget: float) -> float:
    """How much of its runs a group had behind it at the budget."""
    return statistics.mean(min(budget / spent(run, at)[1][-1], 1.0) for run in group.runs.values())


def _row(group: Group, table: Table, groups: list[Group], metric: str) -> dict[str, Any]:
    names = [figure.name for figure in FIGURES]
    return {
        "label": group.label,
        "seeds": list(table),
        "values": [figures[metric] for figures in table.values()],
        "runs": [str(run.path) for run in group.runs.values()],
        "settings": {key: group.settings.get(key) for key in differing_settings(groups)},
        "means": {name: _mean(table, name) if _known(table, name) else None for name in names},
        "deviations": {
            name: statistics.stdev(values) if len(values := _known(table, name)) > 1 else None
            for name in names
        },
        "shown": None,
        "verdict": "baseline",
        "differences": None,
    }


def _as_json(judged: Difference | None, base: Table, name: str, design: Design) -> dict[str, Any] | None:
    """A difference in the metric's unit, and as fractions of the baseline's mean."""
    if judged is None:
        return None
    scale = _mean(base, name)
    facts = {**asdict(judged), "detectable": judged.detectable(design.alpha, design.power)}
    keys = ("mean", "low", "high", "detectable")
    fractions = {f"{key}_fraction": facts[key] / scale if scale else None for key in keys}
    return {**facts, **fractions, "shown": judged.shown}


def _known(table: Table, name: str) -> list[float]:
    return [value for figures in table.values() if (value := figures[name]) is not None]


def _mean(table: Table, name: str) -> float:
    return statistics.mean(_known(table, name))


def _tokenizer(run: Run) -> tuple[str, int]:
    return run.config.data.tokenizer, run.config.model.vocab_size


def _held_out(run: Run) -> tuple[int, int]:
    return run.config.data.sequence_length, run.config.trainer.eval_sequences


def _unfinished(run: Run) -> bool:
    return run.summary.get("exit_reason", "finished") != "finished"


def _differ(runs: list[Run], fact: Callable[[Run], Any]) -> bool:
    return len({fact(run) for run in runs}) > 1
