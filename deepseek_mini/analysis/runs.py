"""A run as its directory tells it."""

from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import Any

from deepseek_mini import run_files
from deepseek_mini.config import Attention, Config, ModelConfig
from deepseek_mini.cost.flops import BF16_BYTES, active_params, flops_per_token
from deepseek_mini.cost.jsonlines import read_lines
from deepseek_mini.cost.meter import device_seconds, read_ledger

NEUTRAL = {
    *("seed", "logger", "run_dir", "resume", "check", "data.cache_dir", "trainer.log_every"),
    *("trainer.eval_every", "trainer.sample_every", "trainer.save_every", "trainer.keep_checkpoints"),
}
"""Settings in which repetitions of a run may differ: they change nothing of what is computed but the draw."""


SMOOTHED = "train/smoothed"
"""Name of the training loss under an exponential moving average, as V3 compares precisions (appendix B.1)."""
SMOOTHING = 0.9


class NothingLogged(ValueError):
    """A run directory without a step."""


@dataclass
class Run:
    """The records of one run; a file that is not there yet reads as empty."""

    path: Path
    config: Config
    environment: dict[str, Any]
    summary: dict[str, Any]
    rows: list[dict[str, Any]] = field(repr=False)
    """metrics.jsonl, a row for each logged step."""

    @property
    def seed(self) -> int:
        return self.config.seed

    @property
    def corpus(self) -> str | None:
        return self.environment.get("corpus_hash")

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Every setting that distinguishes experiments, as `group.key`."""
        return {key: value for key, value in flatten(self.config).items() if not is_neutral(key)}

    @cached_property
    def overrides(self) -> dict[str, str]:
        """The words of its command line, `key=value`."""
        path = self.path / run_files.OVERRIDES
        words = path.read_text().splitlines() if path.exists() else []
        return {key: value for key, _, value in (word.partition("=") for word in words)}

    @cached_property
    def ledger(self) -> list[dict[str, Any]]:
        path = self.path / run_files.LEDGER
        return read_ledger(path) if path.exists() else []

    @cached_property
    def flops_per_token(self) -> float:
        """Causal, with MTP if it is trained, without the gate."""
        model = self.config.model
        return flops_per_token(model, self.config.data.sequence_length, mtp=model.mtp.depth > 0)

    @cached_property
    def active_params(self) -> int:
        return active_params(self.config.model)

    @property
    def device_hours(self) -> float | None:
        return device_seconds(self.ledger) / 3600 if self.ledger else None

    def series(self, name: str) -> tuple[list[int], list[float]]:
        """Tokens and values of a figure, wherever it is known."""
        if name == SMOOTHED:
            tokens, losses = self.series("train/main_loss")
            return tokens, moving_average(losses, SMOOTHING)
        known = [(row["tokens"], row[name]) for row in self.rows if row.get(name) is not None]
        return [tokens for tokens, _ in known], [value for _, value in known]

    def last(self, name: str) -> float | None:
        values = self.series(name)[1]
        return values[-1] if values else None

    def lines(self, name: str) -> list[dict[str, Any]]:
        """Rows of another file of JSON lines."""
        path = self.path / name
        return read_lines(path) if path.exists() else []


def read_run(path: Path) -> Run:
    """Read a run directory. Raises ValueError naming the file that is missing, empty or damaged."""
    config = run_files.read_config(path)
    rows = run_files.read_metrics(path)
    if not rows:
        raise NothingLogged(f"{path / run_files.METRICS}: no step is logged yet; let the run go on first")
    return Run(path, config, run_files.read_environment(path) or {}, run_files.read_summary(path) or {}, rows)


def read_runs(paths: list[Path]) -> tuple[list[Run], list[str]]:
    """The runs at the paths, and a note on each that a folder holds but that has logged nothing.

    Such a run of a sweep has failed, or has only begun. Raises ValueError if it is given by itself.
    """
    runs: list[Run] = []
    notes: list[str] = []
    for path in find_runs(paths):
        try:
            runs.append(read_run(path))
        except NothingLogged:
            if path in paths:
                raise
            notes.append(f"{path} is left out: no step is logged yet")
    if not runs:
        raise NothingLogged(f"no step is logged yet in any of {len(notes)} runs; let them go on first")
    return runs, notes


def find_runs(paths: list[Path]) -> list[Path]:
    """Run directories at the paths, each once. A folder of runs stands for them, the first started first.

    Raises ValueError for a path that holds none.
    """
    found: dict[Path, Path] = {}
    for path in paths:
        inside = [path] if (path / run_files.CONFIG).is_file() else sorted(_inside(path), key=_started)
        if not inside:
            what = "no run is in this folder" if path.is_dir() else "no such folder"
            raise ValueError(f"{path}: {what}; give run directories, such as runs/tiny")
        for run in inside:
            found.setdefault(run.resolve(), run)
    return list(found.values())


def kv_bytes_per_token(model: ModelConfig) -> int:
    """Bytes that this model's own attention keeps of a token in BF16, all layers of the main model."""
    heads = {Attention.mha: model.n_heads, Attention.gqa: model.n_kv_heads, Attention.mqa: 1}
    if model.attention is Attention.mla:
        width = model.kv_lora_rank + model.qk_rope_head_dim
    else:
        width = 2 * heads[model.attention] * model.v_head_dim
    return BF16_BYTES * width * model.n_layers


def moving_average(values: list[float], factor: float) -> list[float]:
    """Each mean keeps `factor` of the one before, from the first value on."""
    means: list[float] = []
    for value in values:
        means.append(factor * means[-1] + (1 - factor) * value if means else value)
    return means


def flatten(settings: object, prefix: str = "") -> dict[str, Any]:
    """A tree of dataclasses as `group.key: value`; enums as their names, lists whole."""
    flat: dict[str, Any] = {}
    assert is_dataclass(settings)
    for item in fields(settings):
        value, key = getattr(settings, item.name), f"{prefix}{item.name}"
        if is_dataclass(value):
            flat |= flatten(value, f"{key}.")
        else:
            flat[key] = value.value if isinstance(value, Enum) else value
    return flat


def is_neutral(key: str) -> bool:
    """Whether a setting changes nothing of what is computed but the draw."""
    return key in NEUTRAL or key.partition(".")[0] in NEUTRAL


def _inside(folder: Path) -> list[Path]:
    return [path.parent for path in folder.glob(f"*/{run_files.CONFIG}")]


def _started(run: Path) -> tuple[float, str]:
    """When a run began, by its ledger."""
    path = run / run_files.LEDGER
    rows = read_ledger(path) if path.exists() else []
    return (rows[0]["time"] if rows else float("inf"), run.name)
