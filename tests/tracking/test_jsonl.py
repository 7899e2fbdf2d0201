"""The files that every report is made from."""

import json
from pathlib import Path
from typing import Any

import pytest

from deepseek_mini.tracking.jsonl import JsonlTracker


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line, parse_constant=pytest.fail) for line in path.read_text().splitlines()]


def test_a_logged_step_is_one_object_in_the_file_at_once(tmp_path: Path) -> None:
    tracker = JsonlTracker(tmp_path, attempt=1)
    tracker.log({"tokens": 4096, "train/loss": 3.5, "perf/mfu": None}, 10)
    assert rows(tmp_path / "metrics.jsonl") == [
        {"step": 10, "attempt": 1, "tokens": 4096, "train/loss": 3.5, "perf/mfu": None}
    ]


def test_nan_is_written_as_null(tmp_path: Path) -> None:
    JsonlTracker(tmp_path, attempt=1).log({"train/loss": float("nan"), "optim/grad_norm": float("inf")}, 1)
    assert rows(tmp_path / "metrics.jsonl")[0] == {
        "step": 1, "attempt": 1, "train/loss": None, "optim/grad_norm": None,
    }  # fmt: skip


def test_a_resumed_run_appends_as_another_attempt(tmp_path: Path) -> None:
    JsonlTracker(tmp_path, attempt=1).log({"train/loss": 3.0}, 10)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 20, "tra')  # killed while writing
    JsonlTracker(tmp_path, attempt=2).log({"train/loss": 2.9}, 20)
    assert [(row["step"], row["attempt"]) for row in rows(tmp_path / "metrics.jsonl")] == [(10, 1), (20, 2)]


def test_samples_and_events_have_files_of_their_own(tmp_path: Path) -> None:
    tracker = JsonlTracker(tmp_path, attempt=3)
    tracker.samples([{"prompt": "a", "text": "b\n\u4f60", "temperature": 0.8}] * 3, 100)
    tracker.event("spike", "loss 9.1", 120)
    samples, events = rows(tmp_path / "samples.jsonl"), rows(tmp_path / "events.jsonl")
    assert samples == [
        {"step": 100, "attempt": 3, "prompt": "a", "text": "b\n\u4f60", "temperature": 0.8}
    ] * 3  # fmt: skip
    assert {**events[0], "time": 0} == {
        "time": 0, "step": 120, "attempt": 3, "kind": "spike", "message": "loss 9.1",
    }  # fmt: skip


def test_a_full_disk_is_announced_once_and_its_rows_are_written_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker = JsonlTracker(tmp_path, attempt=1)
    with monkeypatch.context() as full:
        full.setattr("deepseek_mini.cost.jsonlines._append", refuse)
        for step in (1, 2, 3):
            tracker.log({"train/loss": 1.0}, step)
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert "metrics.jsonl: No space left on device" in said
    tracker.close({})
    assert [row["step"] for row in rows(tmp_path / "metrics.jsonl")] == [1, 2, 3]


def refuse(*_: object) -> None:
    raise OSError(28, "No space left on device")
