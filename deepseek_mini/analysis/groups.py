"""Runs that repeat the same settings with other seeds, and in what one group differs from another."""

import json
from collections import Counter
from dataclasses import dataclass
from typing import Any

from deepseek_mini.analysis.runs import Run

LONGEST_LABEL = 44


@dataclass
class Group:
    """Runs of the same settings, one for each seed."""

    runs: dict[int, Run]
    """By seed, in rising order."""
    label: str = ""

    @property
    def first(self) -> Run:
        return next(iter(self.runs.values()))

    @property
    def settings(self) -> dict[str, Any]:
        return self.first.settings


def group_runs(runs: list[Run]) -> list[Group]:
    """Group runs by their settings, in the order given; where seeds repeat, by code and machine as well.

    Raises ValueError if two runs differ in nothing.
    """
    seen = Counter((_key(run), run.seed) for run in runs)
    doubled = {key for (key, _), times in seen.items() if times > 1}
    groups: dict[str, Group] = {}
    for run in runs:
        key = _key(run) + (_origin(run) if _key(run) in doubled else "")
        there = groups.setdefault(key, Group({})).runs
        if run.seed in there:
            raise ValueError(
                f"{there[run.seed].path} and {run.path} have the same settings, seed and code: "
                "give one of them"
            )
        there[run.seed] = run
    for group in groups.values():
        group.runs = dict(sorted(group.runs.items()))
    label_groups(list(groups.values()))
    return list(groups.values())


def differing_settings(groups: list[Group]) -> dict[str, list[Any]]:
    """The settings in which groups differ: a value for each group."""
    keys = list(dict.fromkeys(key for group in groups for key in group.settings))
    values = {key: [group.settings.get(key) for group in groups] for key in keys}
    return {key: row for key, row in values.items() if any(value != row[0] for value in row)}


def label_groups(groups: list[Group]) -> None:
    """Name each group by the settings in which it differs; where that is too long, by its directory."""
    different = differing_settings(groups)
    last_words = Counter(key.rpartition(".")[2] for key in different)
    for i, group in enumerate(groups):
        parts = []
        for key, values in different.items():
            word = key.rpartition(".")[2]
            name = word if last_words[word] == 1 else ".".join(key.split(".")[-2:])
            parts.append(f"{name}={_short(values[i])}")
        group.label = ", ".join(parts)
    _tell_apart(groups)


def _tell_apart(groups: list[Group]) -> None:
    """Directories for labels that are too long, code versions for those that are the same, or empty."""
    if any(len(group.label) > LONGEST_LABEL for group in groups):
        for group in groups:
            group.label = group.first.path.resolve().name[:LONGEST_LABEL]
    labels = Counter(group.label for group in groups)
    for group in groups:
        if not group.label or labels[group.label] > 1:
            commit = (group.first.environment.get("git_commit") or "")[:7]
            words = (group.label, f"code {commit}" if commit and len(groups) > 1 else "")
            group.label = ", ".join(filter(None, words)) or group.first.path.resolve().name
    labels = Counter(group.label for group in groups)
    for group in groups:
        if labels[group.label] > 1:
            group.label = str(group.first.path)


def _key(run: Run) -> str:
    return json.dumps(run.settings, sort_keys=True, default=str)


def _origin(run: Run) -> str:
    """Code and machine of a run."""
    facts = {key: run.environment.get(key) for key in ("git_commit", "torch", "device", "precision")}
    diff = run.path / "git.diff"
    return json.dumps(facts, sort_keys=True) + (diff.read_text() if diff.exists() else "")


def _short(value: object) -> str:
    if isinstance(value, list):
        return f"[{len(value)} phases]"
    return f"{value:g}" if isinstance(value, float) else str(value)
