"""scripts/export_hf.py: what it prints, exit codes, and errors that name the key or argument."""

import json
import runpy
from pathlib import Path

import pytest

from interop.helpers import random_config, random_model, save_run

MAIN = runpy.run_path(str(Path(__file__).resolve().parents[1] / "scripts/export_hf.py"))["main"]


def export(*words: object) -> int:
    return MAIN([str(word) for word in words])


@pytest.fixture
def run_dir(tmp_path) -> Path:
    return save_run(tmp_path / "run", random_model(random_config(14), 0))


def test_it_says_what_it_wrote_even_into_a_directory_that_is_there_and_empty(run_dir, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    assert export(run_dir, tmp_path / "out", "--max-shard-size", "20KB") == 0
    n_files = len(list((tmp_path / "out").glob("*.safetensors")))
    assert n_files > 1
    printed = capsys.readouterr().out
    assert printed.startswith(f"{tmp_path / 'out'}: ")
    assert f"in {n_files} files, no tokenizer" in printed
    assert export(run_dir, tmp_path / "one") == 0
    assert "in 1 file, no tokenizer\n" in capsys.readouterr().out


def test_fp8_says_who_can_read_it(run_dir, tmp_path, capsys):
    assert export(run_dir, tmp_path / "out", "--fp8") == 0
    assert "note: transformers needs accelerate" in capsys.readouterr().out


def test_ctrl_c_while_writing_leaves_nothing(run_dir, tmp_path, monkeypatch, capsys):
    def press(tensors, path, metadata):
        path.write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr("deepseek_mini.interop.export.save_file", press)
    assert export(run_dir, tmp_path / "out") == 130
    assert "Traceback" not in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize(
    ("words", "dtype", "fp8"),
    [([], "float32", False), (["--dtype", "bfloat16"], "bfloat16", False), (["--fp8"], "bfloat16", True)],
)
def test_the_dtype_is_float32_unless_asked_otherwise(words, dtype, fp8, run_dir, tmp_path):
    assert export(run_dir, tmp_path / "out", *words) == 0
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["torch_dtype"] == dtype
    assert ("quantization_config" in config) == fp8


@pytest.mark.parametrize("size", ["5", "0GB", "5TB", "-1GB"])
def test_a_bad_size_exits_with_2(size, run_dir, tmp_path, capsys):
    assert export(run_dir, tmp_path / "out", f"--max-shard-size={size}") == 2
    assert f"--max-shard-size {size}: write a size such as 500MB" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_is_no_run_is_named_with_exit_code_2(tmp_path, capsys):
    assert export(tmp_path, tmp_path / "out") == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}/config.yaml: no such file")
    assert not (tmp_path / "out").exists()
