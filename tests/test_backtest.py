"""scripts/backtest.py: the agreed JSON, held-out organisations, and errors that name the file."""

import csv
import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from deepseek_mini.cost.tables import DATA, read_table

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "backtest.py"
MAIN = runpy.run_path(str(SCRIPT))["main"]
HEAD_DIM = "head_dim_or_mla(q_lora,kv_lora,nope,rope,v)"
RUNS, PAIRS = DATA / "published_runs.csv", DATA / "nvidia_throughput.csv"


def as_json(path: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert MAIN([str(path), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_json_of_runs_has_the_agreed_keys_in_fractions(capsys: pytest.CaptureFixture[str]) -> None:
    result = as_json(RUNS, capsys)
    assert {"mdape", "p90", "bias", "coverage80", "rows"} <= set(result)
    assert all(set(row) == {"model", "org", "actual", "predicted", "low", "high"} for row in result["rows"])
    assert 0 < result["mdape"] < result["p90"] < 1
    assert (
        result["coverage80"] == sum(row["low"] <= row["actual"] <= row["high"] for row in result["rows"]) / 33
    )
    assert set(result["baselines"]) == {
        "40% MFU, exact FLOPs", "40% MFU, 6ND", "median MFU of the GPU generation",
    }  # fmt: skip
    assert len(result["intervals"]["mdape_interval"]) == 2
    assert len(result["excluded"]) == 25


def test_hours_of_an_organisation_do_not_move_its_own_predictions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = read_table("published_runs")
    tampered = [{**row, "gpu_hours": "1e9"} if row["org"] == "DeepSeek" else row for row in rows]
    before = {row["model"]: row["predicted"] for row in as_json(RUNS, capsys)["rows"]}
    after = {
        row["model"]: row["predicted"] for row in as_json(write(tmp_path / "t.csv", tampered), capsys)["rows"]
    }
    for model in ("DeepSeek-67B", "DeepSeek-V2", "DeepSeek-V3"):
        assert after[model] == before[model]
    assert after["OLMoE-1B-7B"] != before["OLMoE-1B-7B"]


def test_a_new_run_is_predicted_from_the_shipped_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = next(row for row in read_table("published_runs") if row["model"] == "Llama-3-70B")
    new = {**row, "model": "New-70B", "org": "Newcomer"}
    result = as_json(write(tmp_path / "new.csv", [new]), capsys)
    (scored,) = result["rows"]
    assert scored["low"] < scored["actual"] < scored["high"]


def test_a_run_on_an_unknown_device_is_listed_and_not_scored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = read_table("published_runs")[:3]
    rows[0] = {**rows[0], "gpu": "TPUv9"}
    result = as_json(write(tmp_path / "t.csv", rows), capsys)
    assert len(result["rows"]) == 2
    assert "TPUv9" in result["excluded"][0]["reason"]


@pytest.mark.parametrize("column", ["gpu_hours", "heads", "vocab", "ffn", HEAD_DIM])
def test_a_run_without_a_figure_that_is_needed_is_listed_and_not_scored(
    tmp_path: Path, column: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = read_table("published_runs")[:3]
    rows[0] = {**rows[0], column: ""}
    result = as_json(write(tmp_path / "t.csv", rows), capsys)
    assert len(result["rows"]) == 2
    assert result["excluded"][0]["reason"] == f"no {column}"


def test_json_of_pairs_has_the_agreed_keys(capsys: pytest.CaptureFixture[str]) -> None:
    result = as_json(PAIRS, capsys)
    assert {"median_abs_dev", "within_half_percent", "rows"} <= set(result)
    assert result["median_abs_dev"] < 0.001
    assert result["within_half_percent"] >= 0.95
    assert len(result["rows"]) == 114


def test_tables_fit_80_columns() -> None:
    for path, words in ((RUNS, ("median", "40% MFU, 6ND", "not scored")), (PAIRS, ("within 0.5%", "SwiGLU"))):
        done = subprocess.run(
            [sys.executable, SCRIPT, path], capture_output=True, text=True, check=True, env={"COLUMNS": "80"}
        )
        assert max(map(len, done.stdout.splitlines())) <= 80
        assert "…" not in done.stdout
        for word in words:
            assert word in done.stdout


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        ("", "no rows"),
        ("model,org\na,b\n", "no column"),
        ("model,org\na\n", "line 2"),
    ],
)
def test_another_file_is_refused_by_name(
    tmp_path: Path, content: str | None, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "runs.csv"
    if content is not None:
        path.write_text(content)
    assert MAIN([str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert str(path) in error
    assert message in error


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("gpu_hours", "-5"), ("gpu_hours", "nan"), ("tokens_T", "0"), ("tokens_T", "inf"), ("hidden", "wide"),
        ("hidden", "inf"), ("kv_heads", "-8"), ("seq_len", "0"), ("year", "20240"), ("year", "inf"),
    ],
)  # fmt: skip
def test_a_wrong_number_names_its_line_and_column(
    tmp_path: Path, column: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = read_table("published_runs")[:2]
    rows[1] = {**rows[1], column: value}
    assert MAIN([str(write(tmp_path / "runs.csv", rows))]) == 2
    error = capsys.readouterr().err
    assert "line 3" in error
    assert column in error


def test_it_needs_no_torch() -> None:
    code = f"import runpy, sys; runpy.run_path({str(SCRIPT)!r}); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
