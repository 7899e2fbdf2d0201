"""Files that are expensive to make and kept between runs: trained tokenizers and token streams.

A file appears under its name only when it is complete (written aside, then renamed), so a killed run
leaves nothing broken behind; what is damaged later is found by its checksum and made again.
"""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

Announce = Callable[[str], None]


def cache_folder(cache_dir: str | None) -> Path:
    """`data.cache_dir`, or deepseek_mini in the user's cache folder."""
    if cache_dir is not None:
        return Path(cache_dir).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "deepseek_mini"


def cached(path: Path, make: Callable[[BinaryIO], object], announce: Announce) -> Path:
    """`path`, first written by `make` if it is absent or not what was written there.

    Raises ValueError, naming data.cache_dir and the fix, if the folder cannot be used.
    """
    checksum_path = path.with_name(f"{path.name}.sha256")
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        if path.exists():
            if checksum_path.exists() and checksum_path.read_text() == _checksum(path):
                return path
            announce(f"data: {path} is damaged; making it again")
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            make(file)
        checksum_path.write_text(_checksum(temporary))
        temporary.replace(path)
    except OSError as error:
        raise ValueError(
            f"cannot keep {path} ({error}); free some space, or set data.cache_dir to another folder"
        ) from error
    finally:
        if os.path.exists(temporary):
            temporary.unlink()
    return path


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
