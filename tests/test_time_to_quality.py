"""scripts/time_to_quality.py: which seconds count, and who passes."""

import json
from pathlib import Path
from typing import Any

import pytest

from deepseek_mini import run_files
from script_modules import load_script

time_to_quality = load_script("time_to_quality")
ROW = {"attempt": 1, "devices": 1, "device": "CPU", "steps": 0, "tokens": 0, "model_flops": 0.0}


def write(run: Path, loss: float | None, training: float, reason: str = "finished") -> Path:
    """A run that imports for 4 s, starts in 0.5 s, waits for 0.1 s, trains, evaluates and saves."""
    phases = (
        *(("start", "startup", 4.0), ("beat", "startup", 0.5), ("beat", "data_wait", 0.1)),
        *(("beat", "step", training - 1), ("beat", "step", 1.0), ("beat", "evaluate", 2.0)),
        *(("beat", "checkpoint", 3.0), ("end", "step", 0.0)),
    )
    rows = [ROW | {"event": e, "phase": p, "seconds": s} for e, p, s in phases]
    run.mkdir(parents=True)
    (run / run_files.LEDGER).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run / run_files.SUMMARY).write_text(json.dumps({"exit_reason": reason, "final_val_loss": loss}))
    return run


def report(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert time_to_quality.main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_initialisation_and_training_count_and_nothing_else(tmp_path, capsys) -> None:
    write(tmp_path / "seed_0", 1.8799, training=6.0)
    (time,) = report(capsys, str(tmp_path / "seed_0"), "--loss", "1.88")["runs"]
    assert time["initialisation_seconds"] == pytest.approx(0.5)
    assert time["training_seconds"] == pytest.approx(6.1)
    assert time["seconds"] == pytest.approx(6.6)
    assert time["passes"]


def test_a_folder_gives_medians_over_its_finished_runs_and_how_many_pass(tmp_path, capsys) -> None:
    for seed, (loss, seconds) in enumerate([(1.86, 6.0), (1.89, 9.0), (1.87, 7.0)]):
        write(tmp_path / f"seed_{seed}", loss, seconds)
    write(tmp_path / "seed_3", 1.5, 1.0, reason="interrupted")
    found = report(capsys, str(tmp_path), "--loss", "1.88")
    assert [time["run"] for time in found["runs"]] == ["seed_0", "seed_1", "seed_2"]
    assert found["median_seconds"] == pytest.approx(7.6)
    assert (found["median_loss"], found["passing"]) == (1.87, 2)
    assert time_to_quality.main([str(tmp_path), "--loss", "1.88"]) == 0
    assert "2 of 3 runs reach 1.88 nats per token; median 1.8700 after 7.60 s" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "text", "answer"),
    [
        (run_files.LEDGER, None, "no such file"),
        (run_files.LEDGER, "", "no second of training"),
        (
            run_files.LEDGER,
            json.dumps(ROW | {"event": "beat", "phase": "step", "seconds": None}) + "\n",
            "seconds is None",
        ),
        (run_files.SUMMARY, '{"exit_reason": "finished", "final_val_loss": "x"}', "final_val_loss is 'x'"),
        (run_files.SUMMARY, '{"exit_reason": "finished", "final_val_loss": NaN}', "final_val_loss is nan"),
    ],
)
def test_a_damaged_record_is_named_and_does_not_pass(
    tmp_path, capsys, name: str, text: str | None, answer: str
) -> None:
    run = write(tmp_path / "run", 1.8, 6.0)
    (run / name).unlink()
    if text is not None:
        (run / name).write_text(text)
    assert time_to_quality.main([str(run), "--loss", "1.88"]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: {run / name}: ")
    assert answer in captured.err
    assert (captured.err.count("\n"), captured.out) == (1, "")


@pytest.mark.parametrize("loss", ["nan", "inf", "-inf"])
def test_a_loss_that_is_not_finite_is_refused(tmp_path, capsys, loss: str) -> None:
    run = write(tmp_path / "run", 1.8, 6.0)
    with pytest.raises(SystemExit, match="2"):
        time_to_quality.main([str(run), f"--loss={loss}"])
    assert "must be a finite number" in capsys.readouterr().err


@pytest.mark.parametrize("fault", ["no run", "no loss"])
def test_what_cannot_be_read_is_named(tmp_path, capsys, fault: str) -> None:
    run = tmp_path / "run"
    if fault == "no loss":
        write(run, None, 6.0)
    assert time_to_quality.main([str(run), "--loss", "1.88"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {run}: ")
    assert ("no finished run" if fault == "no run" else "no held-out loss") in error
