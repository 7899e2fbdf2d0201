"""wandb never prompts, stalls or kills."""

import os
import pty
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deepseek_mini.config import Config, LoggerConfig, WandbConfig
from deepseek_mini.tracking import wandb as tracker_module
from deepseek_mini.tracking.wandb import WandbTracker, choose_mode


class FakeRun:
    """Records what is logged."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        self.arguments = arguments
        self.url = "https://example.org/run" if arguments["mode"] == "online" else None
        self.rows: list[dict[str, Any]] = []
        self.metrics: list[tuple[str, str]] = []
        self.alerts: list[tuple[str, str]] = []
        self.summary: dict[str, Any] = {}
        self.finished = False

    def log(self, row: dict[str, Any]) -> None:
        if row.get("train/loss") == "bad":
            raise RuntimeError("bad row\nwith a second line")
        self.rows.append(row)

    def define_metric(self, name: str, step_metric: str) -> None:
        self.metrics.append((name, step_metric))

    def alert(self, title: str, text: str) -> None:
        self.alerts.append((title, text))

    def save(self, *_: Any, **__: Any) -> None: ...

    def finish(self) -> None:
        self.finished = True


class FakeWandb(SimpleNamespace):
    """Stands in for the module; `online` and `offline` decide what init does in each mode."""

    def __init__(self) -> None:
        self.runs: list[FakeRun] = []
        self.on_init: dict[str, Callable[[], object]] = {}
        self.settings: dict[str, Any] = {}
        self.torn_down = 0
        super().__init__(Settings=self._settings, setup=lambda settings: None, Table=dict)

    def _settings(self, **keywords: Any) -> dict[str, Any]:
        self.settings = keywords
        return keywords

    def init(self, **arguments: Any) -> FakeRun:
        self.on_init.get(arguments["mode"], lambda: None)()
        self.runs.append(FakeRun(arguments))
        return self.runs[-1]

    def teardown(self) -> None:
        self.torn_down += 1


@pytest.fixture(autouse=True)
def _no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    module = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def tracker(run_dir: Path, mode: str = "offline", commands: dict[str, str] | None = None) -> WandbTracker:
    config = Config(logger=LoggerConfig(wandb=WandbConfig()))
    return WandbTracker(config, run_dir, {} if commands is None else commands, mode, "because")


def raise_error() -> None:
    raise ConnectionError("no route\nand more")


def test_the_explicit_mode_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setenv("WANDB_API_KEY", "key")
    assert choose_mode(WandbConfig(mode="offline"))[0] == "offline"
    assert choose_mode(WandbConfig(mode="online"))[0] == "online"
    assert choose_mode(WandbConfig())[0] == "disabled"


def test_left_open_a_key_in_the_environment_or_netrc_means_online(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert choose_mode(WandbConfig())[0] == "offline"
    (tmp_path / "netrc").write_text("machine example.org login a password b\n")
    assert choose_mode(WandbConfig())[0] == "offline"
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password key\n")
    assert choose_mode(WandbConfig())[0] == "online"
    monkeypatch.setenv("WANDB_BASE_URL", "http://wandb.example.org:8080")
    assert choose_mode(WandbConfig())[0] == "offline"
    (tmp_path / "netrc").write_text("machine wandb.example.org:8080 login user password key\n")
    assert choose_mode(WandbConfig())[0] == "online"
    (tmp_path / "netrc").write_text("not a netrc at all")
    assert choose_mode(WandbConfig())[0] == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "key")
    assert choose_mode(WandbConfig())[0] == "online"


@pytest.mark.parametrize("source", ["config", "environment"])
def test_online_without_a_key_becomes_offline_instead_of_a_question(
    monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    if source == "environment":
        monkeypatch.setenv("WANDB_MODE", "online")
    mode, reason = choose_mode(WandbConfig(mode="online" if source == "config" else None))
    assert mode == "offline"
    assert "wandb login" in reason


def test_an_unknown_mode_is_an_error_that_names_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"logger\.wandb\.mode=on must be one of online, offline, disabled"):
        WandbConfig(mode="on")
    monkeypatch.setenv("WANDB_MODE", "on")
    with pytest.raises(ValueError, match="WANDB_MODE=on"):
        choose_mode(WandbConfig())


def test_steps_are_values_and_unknown_figures_are_left_out(fake: FakeWandb, run_dir: Path) -> None:
    wandb = tracker(run_dir)
    wandb.log({"train/loss": 3.5, "perf/mfu": None}, 10)
    wandb.event("spike", "loss 9.1", 11)
    wandb.samples([{"prompt": "a", "text": "b"}], 20)
    wandb.close({"best_val_bpb": 1.5, "mfu": None})
    run = fake.runs[0]
    assert run.rows[0] == {"train/step": 10, "train/loss": 3.5}
    assert run.rows[1]["samples/20"]["data"] == [["a", "b"]]
    assert run.metrics == [("*", "train/step")]
    assert run.alerts == [("spike", "step 11: loss 9.1")]
    assert run.summary == {"best_val_bpb": 1.5}
    assert run.finished


def test_every_attempt_continues_the_same_curve(fake: FakeWandb, run_dir: Path) -> None:
    for _ in range(2):
        tracker(run_dir).close({})
    first, second = (run.arguments for run in fake.runs)
    assert first["id"] == second["id"] == (run_dir / "wandb_id").read_text()
    assert first["resume"] == "allow"
    assert first["dir"] == run_dir
    assert fake.settings["init_timeout"] <= 20


def test_without_a_connection_it_goes_offline_and_the_end_box_has_the_sync_command(
    fake: FakeWandb, run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.on_init["online"] = raise_error
    commands: dict[str, str] = {}
    wandb = tracker(run_dir, "online", commands)
    wandb.log({"train/loss": 3.5}, 1)
    wandb.close({})
    assert fake.runs[0].arguments["mode"] == "offline"
    assert fake.runs[0].rows == [{"train/step": 1, "train/loss": 3.5}]
    assert commands["upload"].startswith(f"wandb sync {run_dir}")
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert "offline" in said
    assert "no route" in said


def test_a_network_that_hangs_stalls_neither_start_nor_steps_nor_end(
    fake: FakeWandb, run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tracker_module, "CLOSE_SECONDS", 0.3)
    hanging = threading.Event()
    fake.on_init["online"] = lambda: hanging.wait(30) and raise_error()
    commands: dict[str, str] = {}
    begin = time.monotonic()
    wandb = tracker(run_dir, "online", commands)
    for step in range(100):
        wandb.log({"train/loss": 3.5}, step)
    assert time.monotonic() - begin < 0.2
    wandb.close({})
    assert 0.3 <= time.monotonic() - begin < 2
    assert "not done after" in capsys.readouterr().out
    assert "wandb sync" in commands["upload"]
    closed = time.monotonic()
    wandb._finish()  # as the exit hook does
    assert time.monotonic() - closed < 0.1, "it waited twice"
    hanging.set()
    wandb._thread.join(5)
    assert not fake.runs, "a run was started after the end"


def test_later_failures_are_told_once_and_stop_nothing(
    fake: FakeWandb, run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wandb = tracker(run_dir)
    for step in range(5):
        wandb.log({"train/loss": "bad" if step % 2 else 1.0}, step)
    wandb.close({})
    assert [row["train/step"] for row in fake.runs[0].rows] == [0, 2, 4]
    said = capsys.readouterr().out
    assert said.count("bad row") == 1
    assert "second line" not in said


def test_when_wandb_does_not_start_at_all_the_run_goes_on(
    fake: FakeWandb, run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.on_init = {"online": raise_error, "offline": raise_error}
    wandb = tracker(run_dir, "online")
    wandb.log({"train/loss": 1.0}, 1)
    wandb.close({})
    assert "training goes on" in capsys.readouterr().out


SCRIPT = """
import sys
from pathlib import Path
from deepseek_mini.config import Config, LoggerConfig, WandbConfig
from deepseek_mini.tracking import wandb
run_dir = Path(sys.argv[1])
config = Config(logger=LoggerConfig(wandb=WandbConfig()))
wandb.INIT_SECONDS = 1.0
assert sys.stdin.isatty() and sys.stderr.isatty()
tracker = wandb.WandbTracker(config, run_dir, {}, *wandb.choose_mode(config.logger.wandb))
tracker.log({"train/loss": 3.5}, 1)
tracker.close({"best_val_bpb": 1.5})
"""


@pytest.mark.parametrize("key", ["", "a" * 40])
def test_the_real_wandb_on_a_terminal_asks_nothing_and_ends_without_network(run_dir: Path, key: str) -> None:
    """Without a key; and with one, but with nobody at the other end."""
    leader, follower = pty.openpty()
    environment = {**os.environ, "WANDB_BASE_URL": "http://127.0.0.1:9"}
    if key:
        environment["WANDB_API_KEY"] = key
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(run_dir)],
        stdin=follower,
        stdout=follower,
        stderr=follower,
        env=environment,
    )
    os.close(follower)
    try:
        code = process.wait(60)
    finally:
        process.kill()
    said = os.read(leader, 100_000).decode().replace("\r\n", "\n")
    os.close(leader)
    assert code == 0, said
    assert said.count("\n") == 1, said
    assert said.startswith("wandb: offline, in ")
    assert ("online failed" if key else "no API key") in said
    files = list(run_dir.glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 1
    assert files[0].stat().st_size > 0
