"""How scripts end: exit codes, and no traceback for what the user did."""

import io
import subprocess
import sys

import pytest

from deepseek_mini.ending import exit_code


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [(ValueError("no such file"), 2, "error: no such file\n"), (KeyboardInterrupt(), 130, "\n")],
)
def test_what_the_user_did_ends_with_its_code_and_one_line(error, code, said, capsys):
    def work():
        raise error

    assert exit_code(work) == code
    assert capsys.readouterr() == ("", said)


def test_our_own_errors_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        exit_code(lambda: list(range(1 // 0)).clear())


def test_a_screen_that_lacks_a_letter_shows_a_question_mark(monkeypatch):
    screen = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    monkeypatch.setattr("sys.stdout", screen)
    assert exit_code(lambda: sys.stdout.writelines(["na\u00efve"])) == 0
    assert screen.buffer.getvalue() == b"na?ve"


SHOUT = (
    "import sys; from deepseek_mini.ending import exit_code; sys.exit(exit_code(lambda: print('x' * 10**6)))"
)


def test_a_reader_that_closes_its_pipe_is_not_an_error():
    with subprocess.Popen(
        [sys.executable, "-c", SHOUT], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as done:
        assert done.stdout is not None
        assert done.stderr is not None
        done.stdout.close()
        assert done.stderr.read() == b""
    assert done.returncode == 141
