"""Sweeps: `-m` turns one command line into several runs, checks them all, then runs one after the other."""

import ctypes
import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from hydra.core.override_parser.types import Glob, IntervalSweep, Override

from deepseek_mini.compose import Composed, ConfigError, compose, group_options, parse
from deepseek_mini.run_dir import run_directory

INTERRUPTED = 130
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class Job:
    """One run of a sweep."""

    overrides: list[str]
    label: str
    """The overrides in which it differs from the other runs."""
    run_dir: Path


def plan(overrides: Sequence[str], user_dir: Path | None = None) -> list[Job]:
    """The runs of a sweep, each of them composed and checked.

    Swept are the values of the command line (`a=1,2`, `a=range(1,4)`, `group=glob(*)`; the last one varies
    fastest) and, within each of these, `hydra.sweeper.params` of the experiment, unless the command line sets
    the same key. Raises ConfigError, which names the run at fault, also if two runs share a directory.
    """
    groups = group_options(user_dir)
    rows = _product(parse(overrides, groups), groups)
    longer_rows = [
        [*row, *extra]
        for row, composed in zip(rows, _compose_all(rows, user_dir), strict=True)
        for extra in _product(parse(_sweep_words(composed), groups), groups)
    ]
    jobs: list[Job] = []
    for row, composed in zip(longer_rows, _compose_all(longer_rows, user_dir), strict=True):
        job = Job(row, _label(row, longer_rows), run_directory(composed))
        for earlier in jobs:
            if earlier.run_dir == job.run_dir:
                raise ConfigError(f"two runs share {job.run_dir}: {earlier.label} and {job.label}")
        jobs.append(job)
    return jobs


def _compose_all(rows: list[list[str]], user_dir: Path | None) -> list[Composed]:
    composed = []
    for number, row in enumerate(rows, start=1):
        try:
            composed.append(compose(row, user_dir))
        except ConfigError as error:
            label = _label(row, rows)
            raise ConfigError(f"run {number} of {len(rows)} ({label}): {error}") from error
    return composed


def _label(row: list[str], rows: list[list[str]]) -> str:
    """What sets this row apart from the others."""
    common = set.intersection(*map(set, rows))
    return " ".join(word for word in row if word not in common) or " ".join(row) or "no changes"


def _sweep_words(composed: Composed) -> list[str]:
    """The sweep of the experiment, but for the keys that the command line sets."""
    return [f"{key}={values}" for key, values in composed.sweep.items() if key not in composed.settings]


def _product(parsed: list[Override], groups: dict[str, list[str]]) -> list[list[str]]:
    return [list(row) for row in itertools.product(*(_values(override, groups) for override in parsed))]


def _values(override: Override, groups: dict[str, list[str]]) -> list[str]:
    """One `key=value` for each value of an override."""
    key, value = override.key_or_group, override.value()
    if not override.is_sweep_override():
        return [str(override.input_line)]
    if isinstance(value, IntervalSweep):
        raise ConfigError(f"{override.input_line}: an interval has no list of values; use range(a, b, step)")
    if isinstance(value, Glob):
        names = value.filter(groups.get(key, []))
    else:
        names = list(override.sweep_string_iterator())
    if not names:
        raise ConfigError(f"{override.input_line}: it stands for no value at all")
    return [f"{key}={name}" for name in names]


def run_jobs(jobs: Sequence[Job], command: Sequence[str], announce: Callable[[str], None]) -> int:
    """Run `command *overrides` for each job, one child process after the other; return the exit code.

    A run that fails does not stop the others: it is named at the end, and the code is 1. Ctrl-C and SIGTERM
    reach the child, which saves and ends; no further run is started, and the code is 130.
    """
    failed: list[str] = []
    for number, job in enumerate(jobs, start=1):
        announce(f"[{number}/{len(jobs)}] {job.label} -> {job.run_dir}")
        code, interrupted = _run_child([*command, *job.overrides])
        if interrupted or code == INTERRUPTED:
            announce(f"stopped at run {number} of {len(jobs)}; the same command goes on from here")
            return INTERRUPTED
        if code != 0:
            failed.append(f"  {job.label} -> {job.run_dir} (exit code {code})")
    if failed:
        announce("\n".join([f"{len(failed)} of {len(jobs)} runs failed:", *failed]))
    return 1 if failed else 0


def child_command(user_dir: Path | None) -> list[str]:
    """What starts one run: this interpreter, on the module of the command line."""
    flags = [] if user_dir is None else ["--config-dir", str(user_dir)]
    return [sys.executable, "-P", "-m", "deepseek_mini.cli", *flags]


def _run_child(command: list[str]) -> tuple[int, bool]:
    """Exit code of a child process, and whether this process was told to stop meanwhile."""
    package_root = str(Path(__file__).resolve().parent.parent)
    path = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")]))
    signals: list[int] = []
    children: list[subprocess.Popen[bytes]] = []

    def stop(signum: int, _: FrameType | None) -> None:
        signals.append(signum)
        if signum == signal.SIGTERM:  # a terminal sends Ctrl-C to the child as well
            for child in children:
                child.terminate()

    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        environment = os.environ | {"PYTHONPATH": path}
        children.append(subprocess.Popen(command, env=environment, preexec_fn=_ends_with_its_parent()))
        return children[0].wait(), bool(signals)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _ends_with_its_parent() -> Callable[[], None] | None:
    """What a child does first, on Linux: it asks for SIGTERM should this process be killed.

    A run that went on alone would meet the repeated sweep in its directory.
    """
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl
    return lambda: prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
