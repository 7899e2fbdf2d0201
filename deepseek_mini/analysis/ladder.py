"""Which group is compared with which, and the fit of loss against compute over sizes."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deepseek_mini.analysis.groups import Group, differing_settings
from deepseek_mini.analysis.scaling import FEWEST_SIZES, fit_scaling, fit_trend, is_ladder

WHOLE = "all runs"


def choose_baselines(
    groups: list[Group], baseline: Path | None, family: Sequence[str] | None
) -> dict[str, Group]:
    """The group that each group, by its label, is compared with; a baseline with itself.

    Without a family it is one for all: that of the run `baseline`, or the first. In a ladder it is the first
    group that differs in the family's keys only: sizes are not compared with each other.

    Raises ValueError for a baseline that is not among the runs, or a key that no run has.
    """
    for key in family or ():
        if key not in groups[0].settings:
            close = [known for known in groups[0].settings if known.endswith(key.rpartition(".")[2])]
            raise ValueError(
                f"--family {key}: no such setting; name one as in config.yaml {close or ''}".strip()
            )
    if family is not None:
        return {g.label: next(h for h in groups if _rest(h, family) == _rest(g, family)) for g in groups}
    first = groups[0]
    if baseline is not None:
        holders = [g for g in groups if baseline.resolve() in {r.path.resolve() for r in g.runs.values()}]
        if not holders:
            raise ValueError(f"--baseline {baseline} is not one of the runs; name one that is given")
        first = holders[0]
    return {group.label: first for group in groups}


def infer_family(groups: list[Group]) -> list[str] | None:
    """The settings that differ between runs of one width; None if there are too few widths for a ladder."""
    sizes = [group.settings["model.dim"] for group in groups]
    if len(set(sizes)) < FEWEST_SIZES:
        return None
    return [key for key, values in differing_settings(groups).items() if not _follows(values, sizes)]


def fit_families(result: dict[str, Any], groups: list[Group], family: Sequence[str]) -> dict[str, Any] | None:
    """Each family's loss against compute, and how the differences move with it; None without a ladder."""
    rows = {row["label"]: row for row in result["groups"]}
    names = _names(groups, family)
    families: dict[str, list[dict[str, Any]]] = {}
    for group in groups:
        row = rows[group.label]
        if row["means"][result["metric"]] is not None:
            families.setdefault(names[group.label], []).append(row)
    points = {name: sorted(part, key=_flops) for name, part in families.items()}
    ladders = {name: part for name, part in points.items() if is_ladder([_flops(row) for row in part])}
    if not ladders:
        return None
    alpha, metric = result["alpha"], result["metric"]
    fits = {
        name: fit_scaling([_flops(row) for row in part], [row["means"][metric] for row in part], alpha)
        for name, part in ladders.items()
    }
    differences = {name: _differences(part, rows) for name, part in ladders.items()}
    compared = {name: points for name, points in differences.items() if points and is_ladder(points[0])}
    each = alpha / max(len(compared), 1)
    return {"fits": fits, "trends": {name: fit_trend(*points, each) for name, points in compared.items()}}


def _differences(part: list[dict[str, Any]], rows: dict[str, Any]) -> tuple[list[float], list[float]] | None:
    """FLOPs, and the relative difference of each seed from the baseline of the same size and tokens."""
    flops, fractions = [], []
    for row in part:
        base = rows.get(row["baseline"])
        if base is None or base["means"]["tokens"] != row["means"]["tokens"]:
            continue
        there = dict(zip(base["seeds"], base["values"], strict=True))
        for seed, value in zip(row["seeds"], row["values"], strict=True):
            if seed in there:
                flops.append(_flops(row))
                fractions.append(value / there[seed] - 1)
    return (flops, fractions) if flops else None


def _names(groups: list[Group], family: Sequence[str]) -> dict[str, str]:
    """Each group's family: the values of the family's keys, but for widths that other sizes do not have."""
    counts = {key: Counter(str(group.settings[key]) for group in groups) for key in family}
    named = [key for key in family if min(counts[key].values()) >= FEWEST_SIZES]
    return {
        group.label: ", ".join(f"{key.rpartition('.')[2]}={group.settings[key]}" for key in named) or WHOLE
        for group in groups
    }


def _follows(values: list[Any], sizes: list[Any]) -> bool:
    """Whether a setting is the same wherever the size is."""
    return len({(size, str(value)) for size, value in zip(sizes, values, strict=True)}) == len(set(sizes))


def _flops(row: dict[str, Any]) -> float:
    return row["means"]["flops"]


def _rest(group: Group, family: Sequence[str]) -> str:
    rest = {key: value for key, value in group.settings.items() if key not in family}
    return json.dumps(rest, sort_keys=True, default=str)
