"""scripts/chat.py: lines in, text out, and clean ends."""

import io
import re
import runpy
from pathlib import Path

import pytest

from deepseek_mini.compose import load_config
from deepseek_mini.training.trainer import run
from small_run import SMALL, write_corpus

SCRIPT = runpy.run_path(str(Path(__file__).resolve().parents[1] / "scripts" / "chat.py"))
MAIN = SCRIPT["main"]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat")
    corpus = write_corpus(folder / "corpus")
    paths = [f"data.path='{corpus}/*.txt'", f"data.cache_dir='{folder / 'cache'}'"]
    run(load_config([*SMALL, *paths]), folder / "run", [])
    return folder / "run"


def chat(monkeypatch, capsys, run_dir: Path, typed: str, *options: str) -> tuple[int, str]:
    monkeypatch.setattr("sys.stdin", io.StringIO(typed))
    code = MAIN([str(run_dir), "--max-new-tokens", "6", *options])
    return code, capsys.readouterr().out


def test_it_says_what_it_is_and_continues_each_line_of_a_pipe(monkeypatch, capsys, run_dir):
    code, out = chat(monkeypatch, capsys, run_dir, "the cat\ntwo dogs\n")
    assert code == 0
    assert "a base model, which only continues text" in out
    assert "the cat" in out
    assert "two dogs" in out
    assert len(re.findall(r"^6 tokens, [\d.]+ tokens/s$", out, re.MULTILINE)) == 2
    assert "\x1b" not in out


def test_an_empty_line_goes_on_with_the_text(monkeypatch, capsys, run_dir):
    _, out = chat(monkeypatch, capsys, run_dir, "the cat\n\n", "--temperature", "0")
    _, twice = chat(monkeypatch, capsys, run_dir, "the cat\n", "--temperature", "0", "--max-new-tokens", "12")
    first, second = re.findall(r"^(.*)\n6 tokens", out, re.MULTILINE)
    assert f"{first}{second}\n12 tokens" in twice


def test_an_empty_line_before_any_text_shows_the_help(monkeypatch, capsys, run_dir):
    code, out = chat(monkeypatch, capsys, run_dir, "\n")
    assert code == 0
    assert out.count("Ctrl-D ends") == 2
    assert "tokens/s" not in out


def test_each_text_of_a_session_is_drawn_anew(monkeypatch, capsys, run_dir):
    _, out = chat(monkeypatch, capsys, run_dir, "the cat\nthe cat\n", "--temperature", "1")
    first, second = re.findall(r"^the cat(.*)\n6 tokens", out, re.MULTILINE)
    assert first != second


def test_a_text_that_is_too_long_goes_on_from_its_end_and_says_so(monkeypatch, capsys, run_dir):
    prompts = []

    class Silent:
        tokens_per_second = acceptance_rate = None

        def __init__(self, model, texts, *_):
            prompts.extend(texts)

        def __iter__(self):
            return iter([])

    monkeypatch.setattr("deepseek_mini.inference.generate.Generation", Silent)
    text = "a cat " * 700
    for new in ("100", "9999"):
        _, out = chat(monkeypatch, capsys, run_dir, f"{text}\nthe cat\n", "--max-new-tokens", new)
        assert out.count("goes on from the last") == 1
    ends = [text[-3996:], "the cat", text[-2048:], "the cat"]
    assert [bytes(prompt).decode() for prompt in prompts] == ends


def test_a_line_that_is_not_utf8_is_named(monkeypatch, capsys, run_dir):
    monkeypatch.setattr("sys.stdin", io.StringIO("a\udcff\n"))
    assert MAIN([str(run_dir)]) == 2
    assert "text 'a\\udcff': not UTF-8" in capsys.readouterr().err


def test_speculation_tells_its_acceptance(monkeypatch, capsys, run_dir):
    _, out = chat(monkeypatch, capsys, run_dir, "the cat\n", "--speculative")
    assert re.search(r"^6 tokens, [\d.]+ tokens/s, \d+% of drafts accepted$", out, re.MULTILINE)


class Keyboard:
    """A terminal on which lines are typed, or Ctrl-C (KeyboardInterrupt), or Ctrl-D (EOFError)."""

    def __init__(self, *typed: str | type[BaseException]) -> None:
        self.typed = list(typed)

    def isatty(self) -> bool:
        return True

    def __call__(self, prompt: str) -> str:
        typed = self.typed.pop(0)
        if isinstance(typed, str):
            return typed
        raise typed


def at_terminal(monkeypatch, keyboard: Keyboard) -> None:
    monkeypatch.setattr("sys.stdin", keyboard)
    monkeypatch.setattr("builtins.input", keyboard)


@pytest.mark.parametrize(("key", "code"), [(EOFError, 0), (KeyboardInterrupt, 130)])
def test_ctrl_d_and_ctrl_c_end_it_cleanly(monkeypatch, capsys, run_dir, key, code):
    at_terminal(monkeypatch, Keyboard("the cat", key))
    assert MAIN([str(run_dir), "--max-new-tokens", "6"]) == code
    captured = capsys.readouterr()
    assert captured.out.endswith("\n")
    assert "Traceback" not in captured.err


def test_ctrl_c_within_a_text_stops_that_text_only(monkeypatch, capsys, run_dir):
    at_terminal(monkeypatch, Keyboard("the cat", "two dogs", EOFError))
    pressed = []

    def press(self, tokens):
        if not pressed:
            pressed.append(True)
            raise KeyboardInterrupt
        return "."

    monkeypatch.setattr("deepseek_mini.inference.text.TextStream.feed", press)
    assert MAIN([str(run_dir), "--max-new-tokens", "6"]) == 0
    out = capsys.readouterr().out
    assert "stopped" in out
    assert "6 tokens" in out


def test_a_directory_that_is_no_run_is_named(tmp_path, capsys):
    assert MAIN([str(tmp_path / "nowhere")]) == 2
    assert "nowhere/config.yaml: no such file" in capsys.readouterr().err
