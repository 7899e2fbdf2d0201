"""Run directories without training: a real config, and curves that are known."""

import functools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from deepseek_mini import run_files
from deepseek_mini.compose import load_config
from deepseek_mini.config import Config
from small_run import SMALL, merge

STEPS = 40
TOKENS_PER_STEP = 128


def write_run(
    folder: Path,
    *overrides: str,
    seed: int = 0,
    loss: float = 3.0,
    steps: int = STEPS,
    corpus: str = "c0ffee",
    reason: str = "finished",
    **figures: float | None,
) -> Path:
    """A finished run whose held-out loss ends at exactly `loss`; `figures` go into every logged row."""
    config = replace(_compose(overrides), seed=seed)
    folder.mkdir(parents=True)
    (folder / run_files.CONFIG).write_text(run_files.config_text(config))
    (folder / run_files.OVERRIDES).write_text("".join(f"{word}\n" for word in [*overrides, f"seed={seed}"]))
    environment = {"corpus_hash": corpus, "git_commit": "0" * 40, "torch": "2.13.0", "device": "CPU"}
    (folder / run_files.ENVIRONMENT).write_text(json.dumps(environment))
    rows, ledger = [], []
    for step in range(4, steps + 1, 4):
        row: dict[str, Any] = {"step": step, "attempt": 1, "tokens": step * TOKENS_PER_STEP}
        row |= {"train/main_loss": loss + 2 / step, "perf/tokens_per_second": 100.0, "moe/max_violation": 0.5}
        if step % 8 == 0:
            left = 2 / step - 2 / steps
            row |= {"val/loss": loss + left, "val/bpb": (loss + left) / 2, "val/max_violation": 0.25}
        rows.append(row | figures)
        work = {"steps": 4, "tokens": 4 * TOKENS_PER_STEP, "model_flops": 1.0}
        ledger.append({"time": float(step), "attempt": 1, "event": "beat", "phase": "step", "devices": 1,
                       "device": "CPU", "seconds": 4.0, **work})  # fmt: skip
    _write_lines(folder / run_files.METRICS, rows)
    _write_lines(folder / run_files.LEDGER, ledger)
    (folder / run_files.SUMMARY).write_text(json.dumps({"exit_reason": reason}))
    return folder


@functools.cache
def _compose(overrides: tuple[str, ...]) -> Config:
    return load_config(merge([*SMALL, "data.path='text/*.txt'"], overrides))


def _write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_experts(run: Path, n_layers: int = 2, n_experts: int = 8, bias: bool = True) -> None:
    """Records as the trainer writes them: loads that even out, and the routing of a last evaluation."""
    rows = []
    for step in range(4, STEPS + 1, 4):
        counts = [[10 + (STEPS - step) * (e == layer) for e in range(n_experts)] for layer in range(n_layers)]
        row: dict[str, Any] = {"step": step, "attempt": 1, "tokens": step * TOKENS_PER_STEP, "counts": counts}
        row["bias"] = [[step * (e - 3) / 1000 for e in range(n_experts)]] * n_layers if bias else None
        if step % 8 == 0:
            row["val_counts"] = counts
        rows.append(row)
    _write_lines(run / run_files.EXPERTS, rows)
    generator = np.random.default_rng(0)
    chosen = np.argsort(generator.random((n_layers, 500, n_experts)))[:, :, :2]
    kinds = generator.integers(0, 3, 500)
    together = np.zeros((n_layers, n_experts, n_experts), dtype=np.int32)
    by_kind = np.zeros((3, n_layers, n_experts), dtype=np.int32)
    for layer, token in np.ndindex(n_layers, 500):
        a, b = chosen[layer, token]
        for x, y in ((a, a), (b, b), (a, b), (b, a)):
            together[layer, x, y] += 1
        for x in (a, b):
            by_kind[kinds[token], layer, x] += 1
    names = [f"{folder}/{i}.txt" for folder in ("prose", "tables") for i in range(4)]
    by_document = generator.integers(0, 9, (len(names), n_layers, n_experts)).astype(np.int32)
    reach = np.array([[250, 250]] * n_layers, dtype=np.int32)
    facts = {"kinds": json.dumps(["word", "number", "end"]), "documents": json.dumps(names)}
    tables = {"together_LEE": together, "kinds_KLE": by_kind, "documents_DLE": by_document, "reach_LG": reach}
    save_file(tables, run / run_files.ROUTING, {"step": str(STEPS), **facts})
