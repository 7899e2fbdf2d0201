"""Runs that repeat the same settings with other seeds, and in what one group differs from another."""

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from deepseek_mini.analysis.runs import Run, is_neutral

LONGEST_LABEL = 44
LOSSES = ("train/main_loss", "val/loss")
"""What two runs of the same settings, seed and code must agree in."""


@dataclass
class Group:
    """Runs of the same settings, one for each seed."""

    runs: dict[int, Run]
    """By seed, in rising order."""
    label: str = ""
    repeats: list[str] = field(default_factory=list)
    """Notes on runs that repeat one of these."""

    @property
    def first(self) -> Run:
        return next(iter(self.runs.values()))

    @property
    def settings(self) -> dict[str, Any]:
        return self.first.settings


def group_runs(runs: list[Run]) -> list[Group]:
    """Group runs by their settings, in the order given; where seeds repeat, by code and machine as well.

    A run that repeats another to the last digit, as a baseline that two sweeps share, counts once. Raises
    ValueError if two runs differ in their losses and in nothing else.
    """
    seen = Counter((_key(run), run.seed) for run in runs)
    doubled = {key for (key, _), times in seen.items() if times > 1}
    groups: dict[str, Group] = {}
    for run in runs:
        key = _key(run) + (_origin(run) if _key(run) in doubled else "")
        group = groups.setdefault(key, Group({}))
        first = group.runs.setdefault(run.seed, run)
        if first is run:
            continue
        if any(first.series(name) != run.series(name) for name in LOSSES):
            raise ValueError(
                f"{first.path} and {run.path} have the same settings, seed and code, and not the same "
                "losses: give one of them"
            )
        group.repeats.append(f"{run.path} repeats {first.path} to the last digit: counted once")
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
    """Name each group by the settings in which it differs, or by those asked for if that is shorter.

    Asked for is what the command line says; widths that were solved for are not.
    """
    asked = [{k: v for k, v in group.first.overrides.items() if not is_neutral(k)} for group in groups]
    keys = list(dict.fromkeys(key for words in asked for key in words))
    by_words = _labels(groups, {key: [words.get(key, "default") for words in asked] for key in keys})
    labels = _labels(groups, differing_settings(groups))
    if len(set(by_words)) == len(groups) and max(map(len, by_words)) < max(map(len, labels)):
        labels = by_words
    if max(map(len, labels)) > LONGEST_LABEL:
        first, *others = _labels(groups, differing_settings(groups), changes=True)
        labels = [first or "the first settings", *others]
    for group, label in zip(groups, labels, strict=True):
        group.label = label
    _tell_apart(groups)


def _labels(groups: list[Group], settings: dict[str, list[Any]], changes: bool = False) -> list[str]:
    """Of the settings that differ, each by the last word of its key if that is enough.

    With `changes` only those in which a group differs from the first.
    """
    settings = {key: values for key, values in settings.items() if any(v != values[0] for v in values)}
    last_words = Counter(key.rpartition(".")[2] for key in settings)
    names = {
        key: word if last_words[word := key.rpartition(".")[2]] == 1 else ".".join(key.split(".")[-2:])
        for key in settings
    }
    labels = []
    for i in range(len(groups)):
        told = {key: row[i] for key, row in settings.items() if not changes or row[i] != row[0]}
        labels.append(", ".join(f"{names[key]}={_short(value)}" for key, value in told.items()))
    return labels


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
