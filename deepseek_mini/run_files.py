"""The files of a run directory that tell what ran: written by the trainer, read by the scripts."""

import difflib
import json
import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from deepseek_mini.config import Config, LoggerConfig
from deepseek_mini.cost.jsonlines import read_lines

CONFIG = "config.yaml"
OVERRIDES = "overrides.txt"
ENVIRONMENT = "environment.json"
GIT_DIFF = "git.diff"
METRICS = "metrics.jsonl"
LEDGER = "ledger.jsonl"
SAMPLES = "samples.jsonl"
EVENTS = "events.jsonl"
EXPERTS = "experts.jsonl"
ROUTING = "routing.safetensors"
SUMMARY = "summary.json"
CHECKPOINTS = "checkpoints"
CHECKPOINT_PREFIX = "step_"
TOKENIZER = "tokenizer.json"


def config_text(config: Config) -> str:
    """The resolved config as yaml, without the keys that change nothing that is computed."""
    neutral = replace(config, logger=LoggerConfig(), resume="auto", run_dir=None, check=False)
    return OmegaConf.to_yaml(OmegaConf.structured(neutral))


def read_config(run_dir: Path) -> Config:
    """The config of a run. Raises ValueError naming the file if it is missing or not one of ours."""
    path = run_dir / CONFIG
    if not path.is_file():
        raise ValueError(f"{path}: no such file; give the directory of a run, such as runs/tiny")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.load(path))
        config = OmegaConf.to_object(merged)
    except Exception as error:
        raise ValueError(f"{path}: not the config of a run ({str(error).splitlines()[0]})") from error
    assert isinstance(config, Config)
    return config


@contextmanager
def usable(run_dir: Path) -> Iterator[None]:
    """Raises ValueError naming run_dir for what the system does not allow there."""
    try:
        yield
    except OSError as error:
        raise ValueError(f"run_dir={run_dir} cannot be used ({error}); choose another run_dir") from error


def refuse_changes(run_dir: Path, config: Config) -> None:
    """Raise ValueError with the difference if the directory belongs to a run with other settings.

    A start that failed before its first step makes no such claim.
    """
    path, text = run_dir / CONFIG, config_text(config)
    if is_used(run_dir) and path.exists() and path.read_text() != text:
        lines = difflib.unified_diff(
            path.read_text().splitlines(), text.splitlines(), "there", "now", n=0, lineterm=""
        )
        changed = [line for line in lines if line[0] in "+-" and line[:3] not in ("+++", "---")]
        raise ValueError(
            f"{path}: this run has other settings (- there, + now); choose another run_dir or remove it\n  "
            + "\n  ".join(changed[:20])
        )


def claim(run_dir: Path, config: Config, overrides: list[str]) -> None:
    """Make the directory, and write what runs here."""
    run_dir.mkdir(parents=True, exist_ok=True)
    _write(run_dir / CONFIG, config_text(config))
    _write(run_dir / OVERRIDES, "".join(f"{line}\n" for line in overrides))
    _write(run_dir / GIT_DIFF, _git("diff", "HEAD") or "")


def is_used(run_dir: Path) -> bool:
    """Whether a run has begun here: a step was logged, or weights are there."""
    return (run_dir / METRICS).exists() or bool(list_checkpoints(run_dir / CHECKPOINTS))


def write_environment(run_dir: Path, **facts: Any) -> None:
    """What this attempt runs on: versions and git state, and the caller's facts; `earlier` attempts below."""
    import torch

    environment = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "git_commit": (_git("rev-parse", "HEAD") or "").strip() or None,
        "git_dirty": bool(_git("status", "--porcelain")),
        **facts,
    }
    before = read_environment(run_dir)
    if before is not None:
        environment["earlier"] = [*before.pop("earlier", []), before]
    _write(run_dir / ENVIRONMENT, json.dumps(environment, indent=1) + "\n")


def read_environment(run_dir: Path) -> dict[str, Any] | None:
    """What the newest attempt ran on; None before the first. Raises ValueError naming a damaged file."""
    return _read_object(run_dir / ENVIRONMENT)


def read_summary(run_dir: Path) -> dict[str, Any] | None:
    """The outcome of a run; None before its first end. Raises ValueError naming the file if it is damaged."""
    return _read_object(run_dir / SUMMARY)


def is_finished(run_dir: Path) -> bool:
    summary = read_summary(run_dir)
    return summary is not None and summary.get("exit_reason") == "finished"


def write_summary(run_dir: Path, summary: dict[str, Any]) -> None:
    _write(run_dir / SUMMARY, json.dumps(summary, indent=1) + "\n")


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The logged steps in order; of a step that was done again, the last time."""
    path = run_dir / METRICS
    rows = {row["step"]: row for row in read_lines(path)} if path.exists() else {}
    return [rows[step] for step in sorted(rows)]


def recorded_at(run_dir: Path, step: int) -> set[str]:
    """Names of the figures that are on record for a step, and `samples` if there is text of that step."""
    names = {name for row in read_metrics(run_dir) if row["step"] == step for name in row}
    path = run_dir / SAMPLES
    if path.exists() and any(row["step"] == step for row in read_lines(path)):
        names.add("samples")
    return names


def list_checkpoints(directory: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(p for p in directory.glob(f"{CHECKPOINT_PREFIX}*") if p.is_dir())


def latest_checkpoint(directory: Path) -> Path | None:
    """The checkpoint that `latest` names; None if the run has none yet.

    Raises ValueError, with the way out, if it names none that is there.
    """
    pointer = directory / "latest"
    if not pointer.exists():
        return None
    name, there = pointer.read_text(errors="replace").strip(), list_checkpoints(directory)
    if directory / name not in there:
        way_out = f"write {there[-1].name} into it" if there else "none is left; remove it to start afresh"
        raise ValueError(f"{pointer}: names no checkpoint that is there ({name!r}); {way_out}")
    return directory / name


def _write(path: Path, text: str) -> None:
    """Write a file that is whole or as it was: aside, then renamed."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    os.replace(partial, path)


def _read_object(path: Path) -> dict[str, Any] | None:
    """A JSON object; None if there is no such file."""
    if not path.exists():
        return None
    try:
        return {**json.loads(path.read_text())}
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{path}: damaged ({error}); remove it, and the same command writes it anew"
        ) from error


def _git(*arguments: str) -> str | None:
    """Output of a git command on this package's checkout; None where there is none."""
    folder = Path(__file__).resolve().parent
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
