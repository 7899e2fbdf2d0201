"""How long finished runs took to reach a loss: their records are read, nothing is trained.

    python train.py -m experiment=shakespeare_char data.path=tinyshakespeare.txt seed=0,1,2,3,4
    python scripts/time_to_quality.py runs/shakespeare_char --loss 1.88 [--json]

The seconds are the ledger's: initialisation (the data, the model, the optimizer) and training, with waiting
for data. Not in them: imports and the reading of settings before, evaluation, samples and checkpoints.
A run passes if its last held-out loss, in nats per token, is at most --loss.
"""

import argparse
import json
import math
import statistics
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from deepseek_mini import run_files
from deepseek_mini.cost.run_evidence import is_number, read_checked_ledger
from deepseek_mini.ending import exit_code

TRAINING = ("step", "data_wait", "compile")


@dataclass(frozen=True, slots=True)
class Time:
    run: str
    loss: float
    initialisation_seconds: float
    training_seconds: float
    seconds: float
    passes: bool


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="time_to_quality.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="runs, or folders of runs")
    parser.add_argument("--loss", type=float, required=True, metavar="NATS", help="what has to be reached")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    arguments = parser.parse_args(argv)
    if not math.isfinite(arguments.loss):
        parser.error(f"--loss={arguments.loss} must be a finite number")
    return exit_code(lambda: tell(arguments))


def tell(arguments: argparse.Namespace) -> None:
    times = [read_time(run, arguments.loss) for run in find_runs(arguments.runs)]
    report = summarise(times)
    if arguments.json:
        print(json.dumps({"loss": arguments.loss, **report, "runs": [asdict(time) for time in times]}))
    else:
        print_table(times, arguments.loss, report)


def find_runs(paths: list[Path]) -> list[Path]:
    """Finished runs. Raises ValueError where there is none."""
    found = []
    for path in paths:
        runs = [run for run in [path, *sorted(path.glob("*"))] if run_files.is_finished(run)]
        if not runs:
            raise ValueError(f"{path}: no finished run in it; train one, or name its folder")
        found += runs
    return found


def read_time(run: Path, loss: float) -> Time:
    """What the ledger and the summary of a run say of its way to a loss.

    Raises ValueError naming the file that is missing, damaged, or tells of no training.
    """
    path = run / run_files.LEDGER
    rows = [row for row in read_checked_ledger(path) if row["event"] != "start"]
    initialisation = sum(row["seconds"] for row in rows if row["phase"] == "startup")
    training = sum(row["seconds"] for row in rows if row["phase"] in TRAINING)
    if not training:
        raise ValueError(f"{path}: no second of training is in it; give a run that has trained")
    reached = (run_files.read_summary(run) or {}).get("final_val_loss")
    if reached is None:
        raise ValueError(f"{run}: its summary has no held-out loss; let it evaluate (trainer.eval_every)")
    if not is_number(reached):
        raise ValueError(f"{run / run_files.SUMMARY}: final_val_loss is {reached!r}, not a finite number")
    return Time(run.name, reached, initialisation, training, initialisation + training, reached <= loss)


def summarise(times: list[Time]) -> dict[str, float | int]:
    return {
        "median_seconds": statistics.median(time.seconds for time in times),
        "median_loss": statistics.median(time.loss for time in times),
        "passing": sum(time.passes for time in times),
    }


def print_table(times: list[Time], loss: float, report: dict[str, float | int]) -> None:
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("run", "loss", "initialisation", "training", "seconds"):
        table.add_column(column, justify="left" if column == "run" else "right", overflow="fold")
    for time in times:
        parts = (time.initialisation_seconds, time.training_seconds, time.seconds)
        table.add_row(time.run, f"{time.loss:.4f}", *(f"{seconds:.2f}" for seconds in parts))
    Console(width=max(Console().width, 100)).print(table)
    print(
        f"{report['passing']} of {len(times)} runs reach {loss:g} nats per token; "
        f"median {report['median_loss']:.4f} after {report['median_seconds']:.2f} s"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
