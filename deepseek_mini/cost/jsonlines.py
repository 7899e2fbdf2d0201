"""Append-only files of JSON lines that outlive a kill -9 and a full disk."""

import errno
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


class JsonLines:
    """Appends rows to a file, one JSON object a line, each handed to the system before `append` returns.

    A full disk stops nothing: it is announced once, and the rows stay in memory until they can be
    written. A last line that a kill left unfinished is repaired on opening: ended if it is whole, else
    cut off, as nobody was told that it was written. One thread at a time.
    """

    def __init__(self, path: Path, announce: Callable[[str], None], *, sync: bool = False) -> None:
        """Open or create `path`; `sync` also waits for the disk, so that rows outlive a power cut."""
        self._path, self._announce, self._sync = path, announce, sync
        self._unwritten: list[bytes] = []
        self._announced = False
        path.parent.mkdir(parents=True, exist_ok=True)
        _repair(path)

    def append(self, *rows: dict[str, Any]) -> None:
        """Write flat rows; NaN and infinities, which JSON lacks, become null."""
        self._unwritten.extend(_line(row) for row in rows)
        try:
            _append(self._path, b"".join(self._unwritten), self._sync)
            self._unwritten.clear()
        except OSError as error:
            if not self._announced:
                self._announced = True
                self._announce(
                    f"{self._path}: {error.strerror}; its rows wait in memory until they can be written, "
                    "so free some space before the run ends"
                )


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Rows of a file of JSON lines, without a last line that a kill left unfinished.

    Raises ValueError naming the line if any other is damaged, FileNotFoundError if there is no file.
    """
    *lines, tail = path.read_bytes().split(b"\n")
    rows = [_parse(line) for line in lines]
    for number, row in enumerate(rows, start=1):
        if row is None:
            raise ValueError(f"{path}: line {number} is not a JSON object; remove that line")
    return [row for row in (*rows, _parse(tail)) if row is not None]


def _line(row: dict[str, Any]) -> bytes:
    finite = {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in row.items()}
    return json.dumps(finite, allow_nan=False).encode() + b"\n"


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _append(path: Path, data: bytes, sync: bool) -> None:
    """Append all of `data` or, raising OSError, nothing: a half-written row would spoil the next one."""
    with path.open("ab", buffering=0) as file:
        end = file.tell()
        try:
            if file.write(data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if sync:
                os.fsync(file.fileno())
        except OSError:
            file.truncate(end)
            raise


def _repair(path: Path) -> None:
    if not path.exists():
        return
    data = path.read_bytes()
    end = data.rfind(b"\n") + 1
    if end == len(data):
        return
    with path.open("r+b") as file:
        if _parse(data[end:]) is None:
            file.truncate(end)
        else:
            file.seek(0, os.SEEK_END)
            file.write(b"\n")
