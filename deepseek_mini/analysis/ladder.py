"""Which group is compared with which, and the fit of loss against compute over sizes."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deepseek_mini.analysis.groups import Group
from deepseek_mini.analysis.scaling import fit_scaling, fit_trend, is_ladder

WHOLE = "all runs"


def choose_baselines(groups: list[Group], baseline: Path | None, family: Sequence[str]) -> dict[str, Group]:
    """The group that each group, by its label, is compared with; a baseline with itself.

    Without `family` keys it is one for all: that of the run `baseline`, or the first. With them it is the
    first group that differs in these keys only.

    Raises ValueError for a baseline that is not among the runs, or a key that no run has.
    """
    for key in family:
        if key not in groups[0].settings:
            close = [known for known in groups[0].settings if known.endswith(key.rpartition(".")[2])]
            raise ValueError(
                f"--family {key}: no such setting; name one as in config.yaml {close or ''}".strip()
            )
    if family:
        return {g.label: next(h for h in groups if _rest(h, family) == _rest(g, family)) for g in groups}
    first = groups[0]
    if baseline is not None:
        holders = [g for g in groups if baseline.resolve() in {r.path.resolve() for r in g.runs.values()}]
        if not holders:
            raise ValueError(f"--baseline {baseline} is not one of the runs; name one that is given")
        first = holders[0]
    return {group.label: first for group in groups}


def fit_families(result: dict[str, Any], groups: list[Group], family: Sequence[str]) -> dict[str, Any] | None:
    """Each family's loss against compute, and how the differences move with it; None without a ladder."""
    rows = {row["label"]: row for row in result["groups"]}
    families: dict[str, list[dict[str, Any]]] = {}
    for group in groups:
        name = ", ".join(f"{key.rpartition('.')[2]}={group.settings[key]}" for key in family) or WHOLE
        row = rows[group.label]
        if row["means"][result["metric"]] is not None:
            families.setdefault(name, []).append(row)
    points = {name: sorted(part, key=_flops) for name, part in families.items()}
    ladders = {name: part for name, part in points.items() if is_ladder([_flops(row) for row in part])}
    if not ladders:
        return None
    alpha, metric = result["alpha"], result["metric"]
    fits = {
        name: fit_scaling([_flops(row) for row in part], [row["means"][metric] for row in part], alpha)
        for name, part in ladders.items()
    }
    trends = {name: _trend(part, metric, alpha) for name, part in ladders.items()}
    return {"fits": fits, "trends": {name: trend for name, trend in trends.items() if trend}}


def _trend(part: list[dict[str, Any]], metric: str, alpha: float) -> dict[str, Any] | None:
    """The trend of a family's differences, where they were taken at equal tokens."""
    compared = [row for row in part if row["shown"] is not None and row["differences"][metric]]
    if not is_ladder([_flops(row) for row in compared] or [1.0]):
        return None
    fractions = [row["differences"][metric]["mean_fraction"] for row in compared]
    return fit_trend([_flops(row) for row in compared], fractions, alpha)


def _flops(row: dict[str, Any]) -> float:
    return row["means"]["flops"]


def _rest(group: Group, family: Sequence[str]) -> str:
    rest = {key: value for key, value in group.settings.items() if key not in family}
    return json.dumps(rest, sort_keys=True, default=str)
