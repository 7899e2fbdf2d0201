"""Seconds until something happens: help, the answer to a mistyped key, and the first step of a run.

Each is a process of its own, from its start as the shell sees it. The first step is read from the run's
ledger, which begins with the process too: start-up, waiting for data, compilation and one step. The first
start has empty caches, the later ones those that it left.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.result import Result, compared
from deepseek_mini.compose import ConfigError
from deepseek_mini.config import Config
from deepseek_mini.cost.meter import read_ledger
from deepseek_mini.run_files import LEDGER

TRAIN = Path(__file__).resolve().parents[2] / "train.py"
LIMITS = {"help": 1.0, "config_error": 1.0, "second_start": 8.0}
"""Seconds that each may take."""
STARTS = 3
"""Later starts at most: each trains a step."""
BEFORE_THE_FIRST_STEP_ENDS = ("startup", "compile", "data_wait", "step")


def startup(
    config: Config, rounds: int, say: Callable[[str], None], settings: Sequence[str] = ()
) -> list[Result]:
    """Medians over the rounds; `settings` are the run's own."""
    del config
    seconds = {name: [] for name in ("help", "config_error", "first_start", "second_start")}
    for number in range(1, rounds + 1):
        say(f"startup: help and a mistyped key, round {number} of {rounds}")
        seconds["help"].append(process_seconds(["--help"], code=0))
        seconds["config_error"].append(process_seconds([*settings, "model.dmi=3"], code=2))
    with tempfile.TemporaryDirectory() as folder:
        for number in range(1 + min(rounds, STARTS)):
            say(f"startup: start {number + 1} of {1 + min(rounds, STARTS)}")
            name = "second_start" if number else "first_start"
            seconds[name].append(first_step_seconds(settings, Path(folder), number))
    unit = "seconds to the end of the first step"
    return [
        compared(
            f"startup_{name}",
            statistics.median(values),
            LIMITS.get(name),
            "the limit",
            unit if "start" in name else "seconds",
            more_is_better=False,
        )
        for name, values in seconds.items()
    ]


def process_seconds(words: Sequence[str], code: int) -> float:
    """Of `train.py` with these words, which must exit with `code`."""
    begin = time.perf_counter()
    done = subprocess.run([sys.executable, TRAIN, *words], capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - begin
    if done.returncode != code:
        raise RuntimeError(f"train.py {' '.join(words)} exited with {done.returncode}: {done.stderr[-500:]}")
    return seconds


def first_step_seconds(settings: Sequence[str], folder: Path, number: int) -> float:
    """From the start of a new run's process to the end of its only step, with the caches of `folder`."""
    run_dir = folder / f"run_{number}"
    own = {"run_dir": f"'{run_dir}'", "data.cache_dir": f"'{folder / 'data'}'", "trainer.sample_every": "0"}
    own |= {"trainer.max_steps": "1", "trainer.max_tokens": "null", "trainer.eval_sequences": "1"}
    words = [word for word in settings if word.partition("=")[0] not in own]
    words += [f"{key}={value}" for key, value in own.items()]
    caches = {"XDG_CACHE_HOME": str(folder), "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor")}
    done = subprocess.run(
        [sys.executable, TRAIN, *words],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **caches},
    )
    if done.returncode == 2:
        raise ConfigError(done.stderr.strip())
    if done.returncode:
        raise RuntimeError(f"train.py {' '.join(words)} exited with {done.returncode}: {done.stderr[-500:]}")
    rows = read_ledger(run_dir / LEDGER)
    return sum(row["seconds"] for row in rows if row["phase"] in BEFORE_THE_FIRST_STEP_ENDS)
