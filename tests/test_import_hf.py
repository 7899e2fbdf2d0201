"""scripts/import_hf.py: from a directory of Hugging Face's to a run that scripts/sample.py takes."""

import json
import runpy
from pathlib import Path

import pytest

from deepseek_mini import run_files
from deepseek_mini.data.tokenizer import byte_tokenizer
from interop.helpers import random_config, random_model, save_run

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
IMPORT, EXPORT, SAMPLE = (
    runpy.run_path(str(SCRIPTS / f"{name}.py"))["main"] for name in ("import_hf", "export_hf", "sample")
)


@pytest.fixture
def released(tmp_path) -> Path:
    config = random_config(14)
    config.vocab_size = 257
    run_dir = save_run(tmp_path / "run", random_model(config, 0))
    byte_tokenizer().save(run_dir / run_files.TOKENIZER)
    assert EXPORT([str(run_dir), str(tmp_path / "in")]) == 0
    return tmp_path / "in"


def test_an_import_is_sampled_from_as_the_run_it_came_from(released, tmp_path, capsys):
    assert IMPORT([str(released), str(tmp_path / "out")]) == 0
    assert "parameters, MTP depth 2" in capsys.readouterr().out
    answers = []
    for folder in (tmp_path / "run", tmp_path / "out"):
        words = [str(folder), "--prompt", "ab", "--temperature", "0", "--max-new-tokens", "8", "--json"]
        assert SAMPLE(words) == 0
        answers.append(json.loads(capsys.readouterr().out)["tokens"])
    assert answers[0] == answers[1]


def test_errors_are_one_line_with_exit_code_2_and_leave_nothing(released, tmp_path, capsys):
    capsys.readouterr()
    for file in released.glob("*.safetensors"):
        file.unlink()
    assert IMPORT([str(released), str(tmp_path / "out")]) == 2
    printed = capsys.readouterr()
    assert not printed.out
    assert printed.err.startswith(f"error: {released}/model-00001-of-00001.safetensors: no such file")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "run"]
