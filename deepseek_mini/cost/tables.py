"""The tables that ship with the package: published figures, devices, prices, each row with its source."""

import csv
import json
import math
from pathlib import Path
from typing import Any

DATA = Path(__file__).resolve().parent / "data"


def read_table(name: str) -> list[dict[str, str]]:
    """Rows of `data/<name>.csv`; an empty cell is an empty text."""
    return read_csv(DATA / f"{name}.csv")


def read_csv(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV with a header. Raises ValueError naming the file if it is missing, empty or torn."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: cannot be read as CSV ({error})") from error
    if not rows:
        raise ValueError(f"{path}: no rows below the header")
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise ValueError(f"{path}: line {number} has not as many cells as the header")
    return rows


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises ValueError naming the file if it is missing or something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds no JSON object")
    return content


def number(row: dict[str, str], column: str) -> float | None:
    """The number in a cell; None if it is empty or absent. Raises ValueError naming the column otherwise."""
    text = (row.get(column) or "").strip()
    if text in ("", "n/a"):
        return None
    try:
        value = float(text)
    except ValueError as error:
        raise ValueError(f"column {column}: {text!r} is not a number") from error
    if not math.isfinite(value):
        raise ValueError(f"column {column}: {text!r} is not a number")
    return value


def whole(row: dict[str, str], column: str, default: int) -> int:
    """The whole number in a cell, `default` if it is empty. Raises ValueError naming the column otherwise."""
    value = number(row, column)
    if value is None:
        return default
    if value < 0 or value != int(value):
        raise ValueError(f"column {column}: {row[column]!r} is not a whole number, 0 or more")
    return int(value)
