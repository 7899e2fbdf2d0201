"""Shipped tables: in the wheel, with sources, and read with errors that name the cell."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from deepseek_mini.cost.tables import DATA, number, read_csv, read_table, whole

ROOT = Path(__file__).resolve().parents[2]


def test_the_wheel_carries_every_table(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {f"deepseek_mini/cost/data/{path.name}" for path in DATA.iterdir()} <= names


@pytest.mark.parametrize("path", sorted(DATA.glob("*.csv")), ids=lambda path: path.stem)
def test_every_row_says_where_it_is_from(path: Path) -> None:
    for row in read_csv(path):
        assert row.get("source") or row.get("reason") or row.get("note"), row


def test_numbers_are_read_and_absent_ones_are_none() -> None:
    assert number({"a": " 1e3 "}, "a") == 1000
    assert number({"a": ""}, "a") is number({"a": "n/a"}, "a") is number({}, "a") is None
    for text in ("x", "nan", "inf", "-inf"):
        with pytest.raises(ValueError, match=f"column a: '{text}'"):
            number({"a": text}, "a")


def test_whole_numbers_are_not_rounded_to() -> None:
    assert whole({"a": "8.0"}, "a", 1) == 8
    assert whole({"a": ""}, "a", 1) == whole({}, "a", 1) == 1
    for text in ("8.5", "-8"):
        with pytest.raises(ValueError, match=f"column a: '{text}'"):
            whole({"a": text}, "a", 1)


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b"\xef\xbb\xbfmodel,org\nx,y\n")
    assert read_csv(path) == [{"model": "x", "org": "y"}]


def test_goodput_prior_is_the_published_range() -> None:
    (row,) = (row for row in read_table("run_priors") if row["name"] == "goodput")
    assert (row["low"], row["mode"], row["high"]) == ("0.77", "0.90", "0.98")
