"""Files on either side of the border: JSON that may be anything, tokenizers, and directories made whole."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from deepseek_mini.data import load_tokenizer
from deepseek_mini.data.tokenizer import Tokenizer


def shown(value: Any) -> str:
    """Whatever a file says, short and without control characters, for an error's message."""
    return f"{value!r:.80}"


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises ValueError naming the file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such file") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: damaged or not JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds no JSON object")
    return content


def write_object(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def fitting_tokenizer(path: Path, config_path: Path, vocab_size: int) -> Tokenizer | None:
    """The tokenizer of a model, if it has one. Raises ValueError if it is not one for `vocab_size` ids."""
    if not path.exists():
        return None
    tokenizer = load_tokenizer(path)
    if tokenizer.size > vocab_size:
        raise ValueError(f"{path}: has {tokenizer.size} ids, and {config_path} vocab_size={vocab_size} only")
    return tokenizer


@contextmanager
def whole_directory(out: Path) -> Iterator[Path]:
    """A directory to write into, which becomes `out` at the end; after any error nothing is left of it.

    Raises ValueError if there is something at `out` already, or if it cannot be written.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ValueError(f"{out}: exists already; remove it or choose another place")
    partial = out.absolute().parent / f".{out.absolute().name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        for file in partial.rglob("*.safetensors"):  # which the library writes for the owner's eyes only
            file.chmod(partial.stat().st_mode & 0o666)
        os.replace(partial, out)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{out}: cannot be written ({error})") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
