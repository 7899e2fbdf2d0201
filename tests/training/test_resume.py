"""Which checkpoint a run goes on from."""

from pathlib import Path

import pytest
import torch

from deepseek_mini.model.transformer import build_model
from deepseek_mini.training.checkpoint import RunState, save_checkpoint
from deepseek_mini.training.resume import find_checkpoint
from small_model import small_model_config


def save(run_dir: Path, *steps: int) -> Path:
    model = build_model(small_model_config(), torch.device("cpu"), 0)
    for step in steps:
        save_checkpoint(run_dir / "checkpoints", model, [], RunState(step, step, "abc"), {}, keep=3)
    return run_dir


def test_a_run_begins_at_the_path_and_goes_on_from_its_own_newer_checkpoint(make_config, tmp_path, capsys):
    there, here = save(tmp_path / "there", 4, 8), tmp_path / "here"
    config = make_config(f"resume={there}")
    assert find_checkpoint(config, here) == there / "checkpoints/step_00000008"
    save(here, 2)
    assert find_checkpoint(config, here) == there / "checkpoints/step_00000008"
    assert capsys.readouterr().out == ""
    save(here, 9)
    assert find_checkpoint(config, here) == here / "checkpoints/step_00000009"
    assert "has come further" in capsys.readouterr().out


def test_a_path_inside_the_run_is_a_way_back(make_config, tmp_path, monkeypatch):
    save(tmp_path / "run", 4, 8)
    monkeypatch.chdir(tmp_path)
    for path in ("run/checkpoints/step_00000004", tmp_path / "run/checkpoints/step_00000004"):
        found = find_checkpoint(make_config(f"resume={path}"), Path("run"))
        assert found == Path("run/checkpoints/step_00000004")


def test_resume_never_takes_a_directory_whose_start_failed(make_config, tmp_path):
    (tmp_path / "ledger.jsonl").write_text("{}\n")
    assert find_checkpoint(make_config("resume=never"), tmp_path) is None
    save(tmp_path, 4)
    with pytest.raises(ValueError, match=r"resume=never.*holds a run already"):
        find_checkpoint(make_config("resume=never"), tmp_path)
