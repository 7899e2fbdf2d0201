"""Ablations as evidence on the claims about V3: what their runs measured, in words."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deepseek_mini.analysis.comparison import Design, compare, percent
from deepseek_mini.analysis.experts import read_routing
from deepseek_mini.analysis.groups import Group, differing_settings, group_runs
from deepseek_mini.analysis.ladder import choose_baselines, fit_families, infer_family
from deepseek_mini.analysis.runs import read_runs
from deepseek_mini.analysis.tables import verdicts
from deepseek_mini.cost.claim import Topic
from deepseek_mini.cost.communication import expected_nodes

SETTINGS = {
    "model.attention": Topic.cache,
    "precision.format": Topic.fp8,
    "model.mtp.depth": Topic.mtp,
    "model.moe.balance": Topic.balance,
    "model.n_limited_groups": Topic.routing,
}
"""The setting under test -> what its runs are evidence on."""
ELSEWHERE = {
    Topic.flops: "counted, not measured: tests build the modules and find the same numbers",
    Topic.bubbles: "not to be measured on one device: simulated",
    Topic.cost: "not to be measured on one device: the extrapolation's third tier",
}


@dataclass
class Study:
    """The runs of one ablation, compared."""

    path: Path
    topic: Topic | None
    groups: list[Group]
    result: dict[str, Any]

    def means(self, name: str) -> dict[str, float]:
        """A figure's mean over seeds by group, where it is recorded."""
        rows = {row["label"]: row["means"][name] for row in self.result["groups"]}
        return {label: value for label, value in rows.items() if value is not None}


def read_study(path: Path) -> Study:
    """Compare the runs in a folder with the first one's settings, or those of a ladder size by size.

    Raises ValueError naming what is wrong.
    """
    runs, notes = read_runs([path])
    groups = group_runs(runs)
    family = infer_family(groups)
    baselines = choose_baselines(groups, None, family)
    result = compare(groups, lambda group: baselines[group.label], Design())
    result["scaling"] = fit_families(result, groups, family or [])
    result["notes"] += notes
    topic = next((SETTINGS[key] for key in differing_settings(groups) if key in SETTINGS), None)
    return Study(path, topic, groups, result)


def measured(topic: Topic, studies: list[Study]) -> list[str]:
    """What the runs say on a topic, a line each; why nothing, if they say nothing."""
    if topic in ELSEWHERE:
        return [ELSEWHERE[topic]]
    lines = [line for study in studies if study.topic is topic for line in _lines(study)]
    return lines or ["not measured: no such runs were given"]


def other_verdicts(studies: list[Study]) -> list[str]:
    """Verdicts on what no claim is about."""
    return [line for study in studies if study.topic is None for line in verdicts(study.result)]


def groups_per_token(group: Group) -> float | None:
    """Expert groups that a held-out token's experts lie in, over layers and seeds; None without a record."""
    known = [
        float(np.mean(routing.groups_L))
        for run in group.runs.values()
        if (routing := read_routing(run)) is not None and routing.groups_L is not None
    ]
    return float(np.mean(known)) if known else None


def kept_drafts(group: Group) -> list[float]:
    """Share of the drafts of each MTP depth that greedy speculative decoding would keep, over seeds."""
    shares = []
    for depth in range(1, group.first.config.model.mtp.depth + 1):
        name = "val/mtp_acceptance" + (f"_{depth}" if depth > 1 else "")
        known = [value for run in group.runs.values() if (value := run.last(name)) is not None]
        shares += [float(np.mean(known))] if known else []
    return shares


def _lines(study: Study) -> list[str]:
    assert study.topic is not None
    own = OWN_FIGURES.get(study.topic)
    return [*(own(study) if own else []), *verdicts(study.result)]


def _cache_lines(study: Study) -> list[str]:
    sizes = study.means("kv_bytes_per_token")
    return ["cache, bytes per token in BF16: " + _list(sizes, "{:,.0f}")]


def _mtp_lines(study: Study) -> list[str]:
    lines = []
    for group in study.groups:
        if shares := kept_drafts(group):
            kept = " and ".join(map(percent, shares))
            lines.append(
                f"{group.label}: {kept} of the drafts of each depth kept behind held-out text, up to "
                f"{1 + sum(shares):.2f} tokens per pass"
            )
    flops = {label: f / study.means("tokens")[label] for label, f in study.means("flops").items()}
    plain = min(flops.values())
    lines.append(
        "training FLOPs per token: " + _list({k: f / plain for k, f in flops.items()}, "{:.2f} times")
    )
    return lines


def _balance_lines(study: Study) -> list[str]:
    return ["MaxVio over the validation set: " + _list(study.means("val/max_violation"), "{:.2f}")]


def _routing_lines(study: Study) -> list[str]:
    model = study.groups[0].first.config.model
    reach = {g.label: value for g in study.groups if (value := groups_per_token(g)) is not None}
    chance = {
        g.label: expected_nodes(
            model.n_routed_experts,
            model.n_activated_experts,
            model.n_expert_groups,
            g.first.config.model.n_limited_groups,
        )
        for g in study.groups
    }
    lines = ["groups per token if choices were uniform: " + _list(chance, "{:.2f}")]
    return [*(["groups per token: " + _list(reach, "{:.2f}")] if reach else []), *lines]


OWN_FIGURES: dict[Topic, Callable[[Study], list[str]]] = {
    Topic.cache: _cache_lines,
    Topic.mtp: _mtp_lines,
    Topic.balance: _balance_lines,
    Topic.routing: _routing_lines,
}


def _list(values: dict[str, float], form: str) -> str:
    return ", ".join(f"{label} {form.format(value)}" for label, value in values.items())
