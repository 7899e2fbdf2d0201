"""The ledger accounts for every second of a process, once."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from deepseek_mini.cost import meter as meter_module
from deepseek_mini.cost.meter import Meter, device_seconds, read_ledger, seconds_by_phase, steps_recorded

SLACK = 0.1
"""Seconds that starting and ending an interpreter may take outside what the process itself can see."""


def start(path: Path, body: str, **keywords: Any) -> subprocess.Popen[str]:
    """A process that imports the meter as `Meter` and `time`, and runs `body` with `path`."""
    code = "import sys, time\nfrom pathlib import Path\nfrom deepseek_mini.cost.meter import Meter\n"
    code += f"path = Path({str(path)!r})\n{body}"
    return subprocess.Popen([sys.executable, "-c", code], text=True, **keywords)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.jsonl"


def quiet_meter(path: Path, **keywords: Any) -> Meter:
    return Meter(path, "cpu", heartbeat_seconds=60, **keywords)


def steps(meter: Meter, number: int, seconds: float = 0.0) -> None:
    for _ in range(number):
        with meter.phase("data_wait"), meter.phase("step"):
            time.sleep(seconds)
            meter.count(1, tokens=100, model_flops=1e6)


def total(rows: list[dict[str, Any]], key: str, **wanted: Any) -> float:
    return sum(row[key] for row in rows if all(row[k] == v for k, v in wanted.items()))


def test_phases_sum_to_the_wall_clock_that_a_parent_measures(path: Path) -> None:
    body = """
time.sleep(0.6)
meter = Meter(path, "cpu", heartbeat_seconds=0.5)
with meter.phase("compile"): time.sleep(0.4)
for n in range(10):
    with meter.phase("data_wait"): time.sleep(0.02)
    with meter.phase("step"): time.sleep(0.1); meter.count(1, 100, 1e6)
    time.sleep(0.01)
    if n % 5 == 4:
        with meter.phase("checkpoint"): time.sleep(0.1)
        with meter.phase("evaluate"):
            time.sleep(0.2)
            with meter.phase("sample"): time.sleep(0.1)
meter.close()
"""
    begin = time.monotonic()
    assert start(path, body).wait() == 0
    wall = time.monotonic() - begin
    rows = read_ledger(path)
    assert wall > 3
    assert total(rows, "seconds") == pytest.approx(wall, abs=0.005 * wall + SLACK)
    expected = {
        "startup": 0.6, "compile": 0.4, "data_wait": 0.2, "step": 1.1, "checkpoint": 0.2, "evaluate": 0.4,
        "sample": 0.2,
    }  # fmt: skip
    for phase, seconds in seconds_by_phase(rows).items():
        assert seconds >= expected[phase], phase


def test_startup_begins_when_the_process_is_created(path: Path) -> None:
    start(path, 'time.sleep(0.5); Meter(path, "cpu")').wait()
    first = read_ledger(path)[0]
    assert (first["event"], first["phase"]) == ("start", "startup")
    assert first["seconds"] >= 0.5


def test_where_the_system_hides_the_creation_the_meter_says_so(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meter_module.time, "clock_gettime", None)
    monkeypatch.delattr(meter_module.time, "CLOCK_BOOTTIME")
    said: list[str] = []
    with quiet_meter(path, announce=said.append):
        pass
    assert len(said) == 1
    assert "does not tell when this process began" in said[0]


def test_the_innermost_phase_gets_the_seconds(path: Path) -> None:
    with quiet_meter(path) as meter:
        begin = time.monotonic()
        with meter.phase("evaluate"):
            time.sleep(0.05)
            with meter.phase("sample"):
                time.sleep(0.1)
            time.sleep(0.05)
        wall, seconds = time.monotonic() - begin, meter.totals()
    assert 0.1 <= seconds["sample"] <= wall - 0.1
    assert 0.1 <= seconds["evaluate"] <= wall - 0.1


def test_an_exception_leaves_its_phase(path: Path) -> None:
    with quiet_meter(path) as meter:
        with pytest.raises(KeyError), meter.phase("evaluate"):
            raise KeyError
        seconds = meter.totals()["evaluate"]
        time.sleep(0.05)
        assert meter.totals()["evaluate"] == seconds > 0


def test_outside_all_phases_it_is_startup_until_the_first_step_and_step_afterwards(path: Path) -> None:
    with quiet_meter(path) as meter:
        with meter.phase("evaluate"):
            pass
        before = meter.totals()
        time.sleep(0.05)
        middle = meter.totals()
        steps(meter, 1)
        time.sleep(0.05)
        after = meter.totals()
    assert middle["startup"] - before["startup"] >= 0.05
    assert after["step"] - middle["step"] >= 0.05


def test_kill_minus_nine_loses_at_most_one_heartbeat(path: Path) -> None:
    body = """
meter = Meter(path, "cpu", heartbeat_seconds=0.2)
print("up", flush=True)
while True:
    with meter.phase("step"): time.sleep(0.01); meter.count(1, 100, 1e6)
"""
    begin = time.monotonic()
    process = start(path, body, stdout=subprocess.PIPE)
    with process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(1.5)
        process.send_signal(signal.SIGKILL)
        process.wait()
        wall = time.monotonic() - begin
    rows = read_ledger(path)
    assert all(row["event"] != "end" for row in rows)
    assert wall - 0.2 - SLACK <= total(rows, "seconds") <= wall
    with quiet_meter(path) as meter:
        assert meter.attempt == 2


def test_a_long_phase_is_written_while_it_lasts(path: Path) -> None:
    with Meter(path, "cpu", heartbeat_seconds=0.05) as meter, meter.phase("evaluate"):
        time.sleep(0.5)
        during = read_ledger(path)
    assert total(during, "seconds", phase="evaluate") >= 0.3
    assert total(read_ledger(path), "seconds", phase="evaluate") >= 0.5


def test_steps_done_again_after_a_crash_are_redo_and_count_once(path: Path) -> None:
    crashed = quiet_meter(path)
    steps(crashed, 7)
    crashed.flush()
    with quiet_meter(path) as resumed:
        resumed.start_at(4)
        steps(resumed, 2, seconds=0.02)
        with resumed.phase("evaluate"):
            time.sleep(0.05)
        steps(resumed, 1, seconds=0.1)
        steps(resumed, 5)
        begin = time.monotonic()
        with resumed.phase("evaluate"):
            time.sleep(0.02)
        second = time.monotonic() - begin
    crashed.close()
    rows = [row for row in read_ledger(path) if row["attempt"] == 2]
    assert total(rows, "steps", event="redo") == 3
    assert total(rows, "tokens", event="redo") == 300
    assert total(rows, "model_flops", event="redo") == 3e6
    assert total(rows, "seconds", event="redo", phase="step") >= 0.14
    assert total(rows, "seconds", event="redo", phase="evaluate") >= 0.05
    assert 0.02 <= total(rows, "seconds", event="beat", phase="evaluate") <= second
    assert total(rows, "seconds", event="redo", phase="startup") == 0
    assert steps_recorded(read_ledger(path)) == 4 + 2 + 6


def test_a_run_that_starts_over_redoes_everything_it_had_done(path: Path) -> None:
    with quiet_meter(path) as first:
        steps(first, 3)
    with quiet_meter(path) as second:
        steps(second, 5)
    rows = read_ledger(path)
    assert total(rows, "steps", event="redo", attempt=2) == 3
    assert steps_recorded(rows) == 5


def test_a_count_of_several_steps_is_split_where_new_ground_begins(path: Path) -> None:
    with quiet_meter(path) as first:
        first.count(3, tokens=300, model_flops=3e6)
    with quiet_meter(path) as second:
        second.count(4, tokens=400, model_flops=4e6)
    rows = [row for row in read_ledger(path) if row["attempt"] == 2]
    assert (total(rows, "steps", event="redo"), total(rows, "tokens", event="redo")) == (3, 300)
    assert (total(rows, "steps", event="beat"), total(rows, "tokens", event="beat")) == (1, 100)


def test_steps_from_a_foreign_checkpoint_are_entered_without_seconds_or_tokens(path: Path) -> None:
    with quiet_meter(path) as meter:
        meter.start_at(1000)
        steps(meter, 2)
    rows = read_ledger(path)
    assert steps_recorded(rows) == 1002
    assert total(rows, "tokens") == 200


def test_after_close_nothing_is_written(path: Path) -> None:
    meter = Meter(path, "cpu", heartbeat_seconds=0.02)
    meter.close()
    content = path.read_text()
    meter.close()
    steps(meter, 1)
    meter.flush()
    time.sleep(0.1)
    assert path.read_text() == content
    assert json.loads(content.splitlines()[-1])["event"] == "end"


@pytest.mark.parametrize("ending", ["raise RuntimeError", "sys.exit(3)", "pass"])
def test_a_process_that_ends_by_itself_writes_its_end(path: Path, ending: str) -> None:
    body = f'meter = Meter(path, "cpu")\nwith meter.phase("step"):\n    time.sleep(0.2)\n    {ending}'
    start(path, body, stderr=subprocess.DEVNULL).wait()
    rows = read_ledger(path)
    assert rows[-1]["event"] == "end"
    assert total(rows, "seconds", phase="step") >= 0.2


def test_a_second_meter_in_a_process_does_not_count_its_seconds_again(path: Path) -> None:
    with quiet_meter(path):
        pass
    begin = time.monotonic()
    with quiet_meter(path):
        time.sleep(0.05)
    assert total(read_ledger(path), "seconds", attempt=2) <= time.monotonic() - begin + 0.02


def test_a_torn_last_line_costs_only_itself(path: Path) -> None:
    with quiet_meter(path) as meter:
        steps(meter, 2)
    whole = len(read_ledger(path))
    with path.open("a") as file:
        file.write('{"time": 1.0, "attempt": 2, "ev')
    assert len(read_ledger(path)) == whole
    with quiet_meter(path) as meter:
        assert meter.attempt == 2
    assert steps_recorded(read_ledger(path)) == 2


def test_seconds_that_a_full_disk_refuses_are_written_later(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    meter = quiet_meter(path, announce=said.append)
    with monkeypatch.context() as full:
        full.setattr("deepseek_mini.cost.jsonlines._append", refuse)
        for _ in range(3):
            with meter.phase("step"):
                time.sleep(0.05)
                meter.count(1, 100, 1e6)
            meter.flush()
    assert steps_recorded(read_ledger(path)) == 0
    meter.close()
    rows = read_ledger(path)
    assert steps_recorded(rows) == 3
    assert total(rows, "seconds", phase="step") >= 0.15
    assert len(said) == 1


def refuse(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_device_seconds_count_every_device_and_every_row(path: Path) -> None:
    meter = Meter(path, "gpu", devices=8, heartbeat_seconds=60)
    meter.close()
    rows = read_ledger(path)
    assert {row["device"] for row in rows} == {"gpu"}
    assert device_seconds(rows) == pytest.approx(8 * total(rows, "seconds"))
    assert device_seconds(rows) == pytest.approx(8 * sum(seconds_by_phase(rows).values()))


def test_rows_have_exactly_the_documented_keys(path: Path) -> None:
    before = time.time()
    with quiet_meter(path) as meter:
        steps(meter, 1)
    for row in read_ledger(path):
        assert set(row) == {
            "time", "attempt", "event", "phase", "seconds", "devices", "device", "steps", "tokens",
            "model_flops",
        }  # fmt: skip
        assert before <= row["time"] <= time.time()
