"""Where a comparison comes from: its question, the command that repeats it, and on what it ran."""

import itertools
import shlex

from deepseek_mini.analysis.runs import Run
from deepseek_mini.compose import ConfigError, compose, config_dir


def question(runs: list[Run]) -> tuple[str, str]:
    """The experiment's question and its remarks, from the head of its file; a plain title without one."""
    name = _experiment(runs)
    path = config_dir() / "experiment" / f"{name}.yaml"
    if name is None or not path.is_file():
        return "Comparison", ""
    head = itertools.takewhile(lambda line: line.startswith("#"), path.read_text().splitlines())
    first, *rest = [line.removeprefix("#").strip() for line in head if "@package" not in line]
    return first, " ".join(rest)


def training_command(runs: list[Run]) -> str | None:
    """The one command that makes exactly these runs; None if there is none."""
    keys = list(dict.fromkeys(key for run in runs for key in run.overrides))
    if not keys or any(list(run.overrides) != keys for run in runs):
        return None
    values = {key: list(dict.fromkeys(run.overrides[key] for run in runs)) for key in keys}
    made = {tuple(run.overrides.values()) for run in runs}
    if made != set(itertools.product(*values.values())):
        return None
    swept = _swept(_experiment(runs))
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


def _experiment(runs: list[Run]) -> str | None:
    """The experiment that all runs belong to."""
    names = {run.overrides.get("experiment") for run in runs}
    return names.pop() if len(names) == 1 else None


def _swept(experiment: str | None) -> dict[str, set[str]]:
    """Keys that the experiment's own sweep sets, and their values."""
    if experiment is None:
        return {}
    try:
        sweep = compose([f"experiment={experiment}"]).sweep
    except ConfigError:
        return {}
    return {key: {value.strip() for value in str(values).split(",")} for key, values in sweep.items()}
