"""The files of a run directory: whole or absent, and errors that name the file and the way out."""

import json
import os

import pytest

from deepseek_mini import run_files
from deepseek_mini.config import Config, OptimizerConfig

OTHER = Config(optimizer=OptimizerConfig(lr=1e-2))


@pytest.mark.parametrize("content", ['{"exit_reason": "fini', "", "3", '\ufffd{"a"'])
@pytest.mark.parametrize("name", ["summary.json", "environment.json"])
def test_a_damaged_record_is_named_with_the_way_out(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=rf"{name}: damaged \(.*remove it, and the same command"):
        run_files.is_finished(tmp_path) or run_files.write_environment(tmp_path)


def test_an_environment_keeps_those_of_earlier_attempts(tmp_path):
    for attempt in (1, 2, 3):
        run_files.write_environment(tmp_path, attempt=attempt, device=f"device {attempt}")
    environment = json.loads((tmp_path / "environment.json").read_text())
    assert (environment["attempt"], environment["device"]) == (3, "device 3")
    assert [(e["attempt"], e["device"]) for e in environment["earlier"]] == [(1, "device 1"), (2, "device 2")]
    assert all("earlier" not in earlier for earlier in environment["earlier"])


@pytest.mark.parametrize("content", ["", "step_00000030\n", "../checkpoints", "\udcff"])
def test_a_pointer_to_no_checkpoint_is_named_with_one_that_is_there(tmp_path, content):
    (tmp_path / "step_00000010").mkdir()
    (tmp_path / "latest").write_text(content, errors="surrogateescape")
    with pytest.raises(ValueError, match=r"latest: names no checkpoint.*write step_00000010 into it"):
        run_files.latest_checkpoint(tmp_path)


def test_a_pointer_without_any_checkpoint_says_so(tmp_path):
    assert run_files.latest_checkpoint(tmp_path) is None
    (tmp_path / "latest").write_text("step_00000010\n")
    with pytest.raises(ValueError, match=r"latest: names no checkpoint.*remove it to start afresh"):
        run_files.latest_checkpoint(tmp_path)


def test_a_kill_while_claiming_leaves_no_half_written_config(tmp_path, monkeypatch):
    run_files.claim(tmp_path, Config(), [])
    before = (tmp_path / "config.yaml").read_text()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run_files.claim(tmp_path, OTHER, [])
    assert (tmp_path / "config.yaml").read_text() == before


def test_a_directory_is_used_once_a_step_was_logged_or_weights_are_there(tmp_path):
    for name in ("started", "logged", "imported"):
        run_files.claim(tmp_path / name, Config(), [])
        (tmp_path / name / "ledger.jsonl").write_text("{}\n")
    (tmp_path / "logged/metrics.jsonl").write_text('{"step": 1}\n')
    (tmp_path / "imported/checkpoints/step_00000000").mkdir(parents=True)
    run_files.refuse_changes(tmp_path / "started", OTHER)
    for name in ("logged", "imported"):
        with pytest.raises(ValueError, match=r"config\.yaml: this run has other settings"):
            run_files.refuse_changes(tmp_path / name, OTHER)


def test_what_is_recorded_of_a_step_are_its_figures_and_samples(tmp_path):
    assert run_files.recorded_at(tmp_path, 3) == set()
    (tmp_path / "metrics.jsonl").write_text('{"step": 3, "train/loss": 2}\n{"step": 4, "val/loss": 1}\n')
    (tmp_path / "samples.jsonl").write_text('{"step": 4, "text": ""}\n')
    assert run_files.recorded_at(tmp_path, 3) == {"step", "train/loss"}
    assert run_files.recorded_at(tmp_path, 4) == {"step", "val/loss", "samples"}
