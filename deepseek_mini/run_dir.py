"""Where a run is kept: a function of its settings, so that the same command goes on with its own run."""

import hashlib
import json
import re
from pathlib import Path

from deepseek_mini.compose import Composed

LONGEST = 80
"""Characters of a run's name."""


def run_directory(composed: Composed) -> Path:
    """`run_dir` if it is set, else `runs/<model>-<changes>-<hash>` below the current folder.

    Without any change it is `runs/<model>`. Changes are the settings of the command line but for `model` and
    `experiment`, which have their own places in the path, and for those that change nothing that is computed:
    `logger`, `resume`, `check`, `run_dir`. Their order does not count, and 1e-3 is 0.001. The name shows them
    as far as it has room; the hash covers them whole. The runs of an experiment lie in `runs/<experiment>/`.
    """
    if composed.config.run_dir is not None:
        return Path(composed.config.run_dir).expanduser()
    folder = Path("runs", *map(_slug, (composed.experiment or "").split("/")))
    changes = {key: value for key, value in sorted(composed.settings.items()) if _counts(key)}
    model = _slug(composed.model)
    if not changes:
        return folder / model
    words = [f"{key.rpartition('.')[2]}_{_slug(_text(value))}" for key, value in changes.items()]
    digest = hashlib.sha256(json.dumps([composed.model, changes]).encode()).hexdigest()[:8]
    name = "-".join([model, *words])[: LONGEST - len(digest) - 1].rstrip("-_.")
    return folder / f"{name}-{digest}"


def _counts(key: str) -> bool:
    group = key.partition(".")[0]
    return key not in ("model", "experiment") and group not in ("logger", "resume", "check", "run_dir")


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _slug(text: str) -> str:
    """Letters, digits, dots, dashes and underscores only."""
    return re.sub(r"[^A-Za-z0-9.-]+", "_", text).strip("_.")
