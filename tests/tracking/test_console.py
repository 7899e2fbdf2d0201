"""What a person sees of a run."""

import io
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from deepseek_mini.tracking import Header, announce
from deepseek_mini.tracking.console import ConsoleTracker, make_console

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
SUMMARY: dict[str, Any] = {
    "best_val_bpb": 1.512, "final_val_loss": 3.4, "tokens": 4_096_000, "device_hours": 0.1512,
    "steady_tokens_per_second": 8234.0, "mfu": None, "peak_memory_gib": 1.31, "exit_reason": "finished",
    "wall_seconds": 544.2,
}  # fmt: skip


def metrics(**more: float | None) -> dict[str, Any]:
    return {
        "tokens": 4096, "train/loss": 3.412, "optim/lr": 3.1e-4, "optim/grad_norm": 0.42,
        "perf/tokens_per_second": 8234.0, "perf/mfu": None, "perf/step_seconds": 0.5, "perf/memory_gib": 1.3,
        "moe/max_violation": 0.18, "moe/dead_experts": 0, **more,
    }  # fmt: skip


def on(file: io.StringIO, header: Header, run_dir: Path, width: int = 80) -> ConsoleTracker:
    commands = {"resume": "python train.py model=tiny", "upload": "wandb sync there"}
    return ConsoleTracker(header, run_dir, commands, make_console(file, width))


def test_in_a_pipe_there_is_one_plain_line_per_logged_step(header: Header, run_dir: Path) -> None:
    file = io.StringIO()
    tracker = on(file, header, run_dir)
    before = file.getvalue()
    tracker.log(metrics(), 1)
    tracker.log(metrics(**{"val/loss": 3.51, "val/bpb": 1.12}), 100)
    tracker.log(metrics(), 110)
    lines = file.getvalue().removeprefix(before).splitlines()
    rest = (
        "| lr 3.1e-4 | gnorm 0.42 | 8.23k tok/s | mfu n/a | mem 1.3 GiB | experts maxvio 0.18 dead 0 | eta "
    )
    assert lines == [
        f"step    1/1000  0% | loss 3.412 | val n/a bpb n/a {rest}8m 20s",
        f"step  100/1000 10% | loss 3.412 | val 3.510 bpb 1.120 {rest}7m 30s",
        f"step  110/1000 11% | loss 3.412 | val 3.510 bpb 1.120 {rest}7m 25s",
    ]


def test_a_resumed_run_shows_its_last_evaluation(header: Header, run_dir: Path) -> None:
    rows = ('"step": 50, "val/loss": 3.6, "val/bpb": 1.2', '"step": 51, "train/loss": 3.5')
    (run_dir / "metrics.jsonl").write_text("".join(f"{{{row}}}\n" for row in rows))
    file = io.StringIO()
    on(file, header, run_dir).log(metrics(), 52)
    assert "loss 3.412 | val 3.600 bpb 1.200 |" in file.getvalue()


def test_forced_colours_do_not_make_a_file_a_terminal(
    header: Header, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    file = io.StringIO()
    on(file, header, run_dir).log(metrics(), 1)
    assert "\x1b[?25l" not in file.getvalue(), "the cursor was hidden"
    assert len([line for line in file.getvalue().splitlines() if "step" in line and "loss" in line]) == 1


def test_the_header_shows_every_choice_with_its_reason(header: Header, run_dir: Path) -> None:
    file = io.StringIO()
    on(file, header, run_dir)
    for field in ("run", "start", "device", "precision", "parameters", "flops", "peak", "data", "plan"):
        assert getattr(header, field) in file.getvalue()


@pytest.mark.parametrize("width", [80, 120])
def test_on_a_terminal_progress_is_redrawn_in_place(
    header: Header, run_dir: Path, terminal: io.StringIO, width: int
) -> None:
    tracker = on(terminal, header, run_dir, width)
    tracker.log(metrics(), 10)
    before = len(terminal.getvalue())
    tracker.log(metrics(), 20)
    drawn = terminal.getvalue()[before:]
    assert drawn.startswith(("\r\x1b[2K", "\x1b[2K", "\r")), "the old line was not erased"
    lines = ESCAPE.sub("", drawn).strip().splitlines()
    assert len(lines) == 2
    assert max(map(len, lines)) <= width
    assert "step   20/1000  2%" in lines[0]
    tracker.close(SUMMARY)


def test_on_a_terminal_an_evaluation_leaves_a_line_behind(
    header: Header, run_dir: Path, terminal: io.StringIO
) -> None:
    tracker = on(terminal, header, run_dir)
    tracker.log(metrics(**{"val/loss": 3.51, "val/bpb": 1.12}), 100)
    lines = [line.strip() for line in ESCAPE.sub("", terminal.getvalue()).splitlines()]
    assert "step  100/1000 10% | loss 3.412 | val 3.510 bpb 1.120" in lines
    tracker.close(SUMMARY)


def test_announcements_appear_above_the_live_line(
    header: Header, run_dir: Path, terminal: io.StringIO
) -> None:
    tracker = on(terminal, header, run_dir)
    tracker.log(metrics(), 10)
    before = len(terminal.getvalue())
    announce("data: made again")
    drawn = ESCAPE.sub("", terminal.getvalue()[before:])
    assert drawn.index("data: made again") < drawn.index("step   10/1000")
    tracker.close(SUMMARY)


def test_the_cursor_comes_back_at_the_end(header: Header, run_dir: Path, terminal: io.StringIO) -> None:
    tracker = on(terminal, header, run_dir)
    assert terminal.getvalue().count("\x1b[?25l") == 1
    tracker.close(SUMMARY)
    assert terminal.getvalue().rindex("\x1b[?25h") > terminal.getvalue().rindex("\x1b[?25l")


def test_messages_are_shown_literally(capsys: pytest.CaptureFixture[str]) -> None:
    announce("pip install -e '.[tensorboard]' [bold]now[/bold] :smile: " + "x" * 200)
    assert capsys.readouterr().out == (
        "pip install -e '.[tensorboard]' [bold]now[/bold] :smile: " + "x" * 200 + "\n"
    )


def test_samples_are_dimmed_shortened_and_harmless(
    header: Header, run_dir: Path, terminal: io.StringIO
) -> None:
    tracker = on(terminal, header, run_dir)
    before = len(terminal.getvalue())
    text = "\n\tpass\x1b[2J\x07\x9b31m\n\n\n" + "\n".join(["a", "b", "c" * 200, "d"])
    tracker.samples([{"prompt": "def f():", "text": text}], 100)
    drawn = terminal.getvalue()[before:]
    assert "\x1b[2m  > def f():" in drawn
    assert "\x1b[2J" not in drawn
    assert "\x07" not in drawn
    assert "\x9b" not in drawn
    lines = [line for line in ESCAPE.sub("", drawn).splitlines() if line.startswith("  ")]
    assert [line[4:9] for line in lines] == ["def f", "    p", "a", "b", "..."]
    assert max(map(len, lines)) <= 80
    tracker.close(SUMMARY)


def test_events_are_yellow(header: Header, run_dir: Path, terminal: io.StringIO) -> None:
    tracker = on(terminal, header, run_dir)
    tracker.event("spike", "loss 9.1", 300)
    assert "\x1b[33mstep 300 | spike: loss 9.1" in terminal.getvalue()
    tracker.close(SUMMARY)


def test_the_end_box_says_what_came_out_and_what_to_type_next(header: Header, run_dir: Path) -> None:
    file = io.StringIO()
    tracker = on(file, header, run_dir)
    tracker.samples([{"prompt": "it's\n", "text": "x"}], 100)
    before = len(file.getvalue())
    tracker.close({**SUMMARY, "exit_reason": "interrupted", "mfu": 0.312})
    box = file.getvalue()[before:]
    for fact in (
        "interrupted", "1.512", "3.400", "4.1M in 9m 04s", "8.23k tok/s", "31.2%", "1.31 GiB", "0.151",
        str(run_dir), "metrics.jsonl", "python train.py model=tiny", "wandb sync there",
    ):  # fmt: skip
        assert fact in box, fact
    assert f"python scripts/sample.py {run_dir} --prompt 'it'\"'\"'s'\n" in box


def test_a_finished_run_is_not_told_to_resume(header: Header, run_dir: Path) -> None:
    file = io.StringIO()
    on(file, header, run_dir).close(SUMMARY)
    assert "train.py" not in file.getvalue()
    assert "mfu n/a" in file.getvalue()


def test_one_slow_step_does_not_spoil_the_eta(header: Header, run_dir: Path) -> None:
    file = io.StringIO()
    tracker = on(file, header, run_dir)
    tracker.log(metrics(**{"perf/step_seconds": 60.0}), 1)
    for step in (10, 20, 30):
        tracker.log(metrics(), step)
    assert file.getvalue().splitlines()[-1].endswith("eta 8m 05s")


SCRIPT = """
from pathlib import Path
from deepseek_mini.tracking import Header, announce
from deepseek_mini.tracking.console import ConsoleTracker
text = dict.fromkeys("run start device precision parameters flops peak data plan".split(), "text")
tracker = ConsoleTracker(Header(**text, steps=10), Path("runs/x"), {"resume": "again"})
for step in range(1, 11):
    tracker.log({"train/loss": 1.0}, step)
tracker.samples([{"prompt": "\\u4f60", "text": "\\u597d \\U0001f600"}], 10)
announce("still here")
"""


def run_script(encoding: str, stdout: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, "PYTHONIOENCODING": encoding},
        stdout=stdout,
        stderr=subprocess.PIPE,
        check=False,
    )


def test_text_that_the_terminal_cannot_show_does_not_stop_a_run() -> None:
    done = run_script("ascii", subprocess.PIPE)
    assert done.returncode == 0, done.stderr
    assert b"still here" in done.stdout
    assert b"> ?? ?" in done.stdout


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_under_stdout_does_not_stop_a_run() -> None:
    with open("/dev/full", "wb") as full:
        done = run_script("utf-8", full)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(b"\n") == 1
    assert b"the screen goes quiet (No space left on device)" in done.stderr
