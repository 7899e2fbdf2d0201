"""The files of a run directory that tell what ran: written by the trainer, read by the scripts."""

import difflib
import json
import os
import platform
import subprocess
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


def claim(run_dir: Path, config: Config, overrides: list[str]) -> None:
    """Write what runs here, or make sure that it is the same as before; a finished run keeps its records.

    Raises ValueError with the difference if the directory belongs to a run with other settings.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    path, text = run_dir / CONFIG, config_text(config)
    if path.exists() and path.read_text() != text:
        lines = difflib.unified_diff(
            path.read_text().splitlines(), text.splitlines(), "there", "now", n=0, lineterm=""
        )
        changed = [line for line in lines if line[0] in "+-" and line[:3] not in ("+++", "---")]
        raise ValueError(
            f"{path}: this run has other settings (- there, + now); choose another run_dir or remove it\n  "
            + "\n  ".join(changed[:20])
        )
    if is_finished(run_dir):
        return
    path.write_text(text)
    (run_dir / OVERRIDES).write_text("".join(f"{line}\n" for line in overrides))
    (run_dir / GIT_DIFF).write_text(_git("diff", "HEAD") or "")


def write_environment(run_dir: Path, **facts: Any) -> None:
    """What the run ran on: versions and git state, and the caller's facts."""
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
    (run_dir / ENVIRONMENT).write_text(json.dumps(environment, indent=1) + "\n")


def read_summary(run_dir: Path) -> dict[str, Any] | None:
    path = run_dir / SUMMARY
    return json.loads(path.read_text()) if path.exists() else None


def is_finished(run_dir: Path) -> bool:
    summary = read_summary(run_dir)
    return summary is not None and summary["exit_reason"] == "finished"


def write_summary(run_dir: Path, summary: dict[str, Any]) -> None:
    partial = run_dir / f".{SUMMARY}.partial"
    partial.write_text(json.dumps(summary, indent=1) + "\n")
    os.replace(partial, run_dir / SUMMARY)


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The logged steps in order; of a step that was done again, the last time."""
    path = run_dir / METRICS
    rows = {row["step"]: row for row in read_lines(path)} if path.exists() else {}
    return [rows[step] for step in sorted(rows)]


def list_checkpoints(directory: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(p for p in directory.glob(f"{CHECKPOINT_PREFIX}*") if p.is_dir())


def latest_checkpoint(directory: Path) -> Path | None:
    """The checkpoint that `latest` names; None if the run has none yet."""
    pointer = directory / "latest"
    return directory / pointer.read_text().strip() if pointer.exists() else None


def _git(*arguments: str) -> str | None:
    """Output of a git command on this package's checkout; None where there is none."""
    folder = Path(__file__).resolve().parent
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
