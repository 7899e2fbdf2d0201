"""Files of JSON lines outlive kills and full disks."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from deepseek_mini.cost.jsonlines import JsonLines, read_lines


def fail(message: str) -> None:
    raise AssertionError(message)


@pytest.mark.parametrize("torn", ['{"a": 2', '{"a": 2, "b": "', "{", '{"a"', "\0\0\0\0"])
def test_an_unfinished_last_line_is_cut_off_so_that_later_rows_parse(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n' + torn)
    assert read_lines(path) == [{"a": 1}]
    JsonLines(path, fail).append({"a": 3})
    assert path.read_text() == '{"a": 1}\n{"a": 3}\n'


def test_a_whole_last_line_without_its_newline_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}')
    assert read_lines(path) == [{"a": 1}, {"a": 2}]
    JsonLines(path, fail).append({"a": 3})
    assert [row["a"] for row in read_lines(path)] == [1, 2, 3]


def test_a_damaged_line_in_the_middle_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{"a": \n{"a": 3}\n')
    with pytest.raises(ValueError, match=r"rows\.jsonl: line 2 .* remove that line"):
        read_lines(path)


def test_nan_and_infinity_become_null(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    JsonLines(path, fail).append(
        {"a": float("nan"), "b": float("inf"), "c": -float("inf"), "d": 1.5, "e": None}
    )
    row = json.loads(path.read_text(), parse_constant=fail)
    assert row == {"a": None, "b": None, "c": None, "d": 1.5, "e": None}


def test_each_row_is_in_the_file_when_append_returns(tmp_path: Path) -> None:
    file = JsonLines(tmp_path / "rows.jsonl", fail)
    for n in range(1, 4):
        file.append({"n": n})
        assert len(read_lines(tmp_path / "rows.jsonl")) == n


FULL_DISK = """
import json, resource, sys
from pathlib import Path
from deepseek_mini.cost.jsonlines import JsonLines

path, said = Path(sys.argv[1]), []
file = JsonLines(path, said.append, sync=True)
file.append({"n": 0, "text": "x" * 50})
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))  # the next row fits by half only
for n in range(1, 4):
    file.append({"n": n, "text": "x" * 50})
during = path.read_text()
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
file.append({"n": 4, "text": "x" * 50})
print(json.dumps({"said": said, "during": during}))
"""


def test_rows_that_a_full_disk_refuses_are_announced_once_and_written_later(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(path)], capture_output=True, text=True, check=True
    )
    seen = json.loads(done.stdout)
    assert len(seen["said"]) == 1
    assert "rows.jsonl" in seen["said"][0]
    assert "free some space" in seen["said"][0]
    assert len(seen["during"].splitlines()) == 1, "half a row was left behind"
    assert [row["n"] for row in read_lines(path)] == [0, 1, 2, 3, 4]
