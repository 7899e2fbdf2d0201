import errno
import subprocess
import sys
from pathlib import Path
from typing import BinaryIO

import pytest

from deepseek_mini.data import cache
from deepseek_mini.data.cache import cache_folder, cached


class Maker:
    """Writes a fixed content and counts how often."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, file: BinaryIO) -> None:
        self.calls += 1
        file.write(b"tokens " * 1000)


def test_a_file_is_made_once(tmp_path: Path) -> None:
    make, lines = Maker(), []
    for _ in range(3):
        assert cached(tmp_path / "deep/er/file", make, lines.append).read_bytes() == b"tokens " * 1000
    assert (make.calls, lines) == (1, [])


@pytest.mark.parametrize("damage", [b"", b"tokens ", b"Tokens " + b"tokens " * 999, b"tokens " * 1001])
def test_a_damaged_file_is_made_again_with_one_line(damage: bytes, tmp_path: Path) -> None:
    make, lines, path = Maker(), [], tmp_path / "file"
    cached(path, make, lines.append)
    path.write_bytes(damage)
    for _ in range(2):
        assert cached(path, make, lines.append).read_bytes() == b"tokens " * 1000
    assert lines == [f"data: {path} is damaged; making it again"]


def test_a_kill_while_writing_leaves_nothing_under_the_name(tmp_path: Path) -> None:
    path = tmp_path / "file"
    script = f"""
import os, pathlib, runpy, signal
def make(file):
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
runpy.run_path({cache.__file__!r})["cached"](pathlib.Path({str(path)!r}), make, print)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -9
    assert not path.exists()
    assert cached(path, Maker(), pytest.fail).stat().st_size == 7000


def test_a_full_disk_names_the_file_and_the_key_and_leaves_nothing(tmp_path: Path) -> None:
    def make(file: BinaryIO) -> None:
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "file"
    with pytest.raises(ValueError, match=rf"{path} .*No space left.*set data\.cache_dir"):
        cached(path, make, print)
    assert list(tmp_path.iterdir()) == []


def test_a_cache_folder_that_cannot_be_made_names_the_key(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ValueError, match=r"Not a directory.*set data\.cache_dir to another folder"):
        cached(tmp_path / "file" / "cache" / "tokens", Maker(), print)


def test_cache_folder_is_the_users_unless_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder(None) == tmp_path / ".cache/deepseek_mini"
    assert cache_folder("~/mine") == tmp_path / "mine"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder(None) == tmp_path / "xdg/deepseek_mini"
