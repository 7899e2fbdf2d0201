"""Where a comparison comes from: its question, the command that repeats it, and on what it ran."""

import itertools
import shlex

from deepseek_mini.analysis.runs import Run
from deepseek_mini.compose import ConfigError, compose, config_dir


def question(runs: list[Run]) -> tuple[str, str]:
    """The question and remarks of the first run's experiment, from the head of its file; or a plain title."""
    name = runs[0].overrides.get("experiment")
    path = config_dir() / "experiment" / f"{name}.yaml"
    if name is None or not path.is_file():
        return "Comparison", ""
    head = itertools.takewhile(lambda line: line.startswith("#"), path.read_text().splitlines())
    first, *rest = [line.removeprefix("#").strip() for line in head if "@package" not in line]
    return first, " ".join(rest)


def training_commands(runs: list[Run]) -> list[str]:
    """Commands that make exactly these runs, one per experiment and set of keys; none if one is missing."""
    parts: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        parts.setdefault((run.overrides.get("experiment", ""), *run.overrides), []).append(run)
    commands = [_training_command(part) for part in parts.values()]
    return [command for command in commands if command] if all(commands) else []


def _training_command(runs: list[Run]) -> str | None:
    """The command that makes exactly these runs of one experiment and set of keys; None without one."""
    experiment, keys = runs[0].overrides.get("experiment"), list(runs[0].overrides)
    if not keys:
        return None
    values = {key: list(dict.fromkeys(run.overrides[key] for run in runs)) for key in keys}
    made = {tuple(run.overrides.values()) for run in runs}
    if made != set(itertools.product(*values.values())):
        return None
    swept = _swept(experiment)
    words = [f"{key}={','.join(found)}" for key, found in values.items() if set(found) != swept.get(key)]
    several = any(len(found) > 1 for found in values.values())
    return shlex.join(["python", "train.py", *(["-m"] if several else []), *words])


def facts(runs: list[Run]) -> list[str]:
    """A line each: corpus, machine and versions, code, and how long it took."""
    environments = [run.environment for run in runs]

    def every(key: str) -> str:
        return " and ".join(dict.fromkeys(str(e.get(key, "unknown")) for e in environments))

    threads = f"{every('threads')} thread{'' if every('threads') == '1' else 's'}"
    dirty = " with changes (git.diff of the runs)" if any(e.get("git_dirty") for e in environments) else ""
    lines = [
        f"Corpus {every('corpus_hash')}: {every('corpus').partition('; corpus ')[0]}.",
        f"{every('device')}, {threads}, {every('precision')}; Python {every('python')}, PyTorch "
        f"{every('torch')}; code {every('git_commit')}{dirty}.",
    ]
    hours = [run.device_hours for run in runs]
    seconds = sorted(3600 * h for h in hours if h is not None)
    if seconds:
        lines.append(
            f"Wall-clock: {sum(seconds) / 60:.1f} minutes for {len(runs)} runs, {seconds[0]:.0f} to "
            f"{seconds[-1]:.0f} seconds each."
        )
    return lines


def _swept(experiment: str | None) -> dict[str, set[str]]:
    """Keys that the experiment's own sweep sets, and their values."""
    if experiment is None:
        return {}
    try:
        sweep = compose([f"experiment={experiment}"]).sweep
    except ConfigError:
        return {}
    return {key: {value.strip() for value in str(values).split(",")} for key, values in sweep.items()}
