"""Weights & Biases, online where there is a key and offline elsewhere; it never prompts, stalls or kills."""

import atexit
import netrc
import os
import queue
import secrets
import shlex
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from deepseek_mini import run_files
from deepseek_mini.config import Config, WandbConfig
from deepseek_mini.tracking.console import announce

INIT_SECONDS = 20.0
CLOSE_SECONDS = 20.0
MODES = ("online", "offline", "disabled")


class WandbTracker:
    """A thread of its own talks to wandb, so the network can hold up neither the start nor a step.

    Steps are values (`train/step`), never wandb's own `step=`, which drops the rows of a resumed run that
    lie before its last one. The run's id is kept in `wandb_id`, so every attempt continues one curve.
    """

    def __init__(
        self, config: Config, run_dir: Path, commands: dict[str, str], mode: str, reason: str
    ) -> None:
        assert config.logger.wandb is not None
        self._settings, self._facts = config.logger.wandb, asdict(config)
        self._run_dir, self._commands = run_dir, commands
        self._mode, self._reason = mode, reason
        self._jobs: queue.SimpleQueue[Callable[[Any], object] | None] = queue.SimpleQueue()
        self._closing = self._abandoned = self._complained = False
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        self._thread.start()

    def log(self, metrics: dict[str, Any], step: int) -> None:
        known = {name: value for name, value in metrics.items() if value is not None}
        self._jobs.put(lambda run: run.log({"train/step": step, **known}))

    def samples(self, rows: list[dict[str, Any]], step: int) -> None:
        def send(run: Any) -> None:
            import wandb

            # One table per evaluation: a table that was logged cannot grow.
            table = wandb.Table(columns=["prompt", "text"], data=[[r["prompt"], r["text"]] for r in rows])
            run.log({"train/step": step, f"samples/{step}": table})

        self._jobs.put(send)

    def event(self, kind: str, message: str, step: int) -> None:
        self._jobs.put(lambda run: run.alert(title=kind, text=f"step {step}: {message}"))

    def close(self, summary: dict[str, Any]) -> None:
        known = {name: value for name, value in summary.items() if value is not None}
        self._jobs.put(lambda run: run.summary.update(known))
        self._finish()

    def _finish(self) -> None:
        """Wait for what is under way, but not for long: wandb keeps on disk what it could not send."""
        if self._closing:
            return
        self._closing = True
        self._jobs.put(None)
        self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():
            self._complain(f"not done after {CLOSE_SECONDS:.0f} s")
            self._suggest_sync()
            self._abandoned = True

    def _work(self) -> None:
        """The thread: start, do the jobs in order, finish."""
        run = self._start()
        while (job := self._jobs.get()) is not None:
            if run is not None:
                self._try(lambda job=job: job(run))
        if run is not None:
            self._try(run.finish)
            self._try(_tear_down)

    def _start(self) -> Any:
        """A wandb run: online if that was chosen and answers in time, else offline; None if neither."""
        if self._mode == "online":
            try:
                run = self._init("online")
                announce(f"wandb: {run.url}")
                return run
            except Exception as error:
                if self._abandoned:
                    return None
                self._reason = f"online failed, {_first_line(error)}"
                self._try(_tear_down)
        run = self._try(lambda: self._init("offline"))
        if run is not None:
            announce(f"wandb: offline, in {self._run_dir / 'wandb'} ({self._reason})")
            self._suggest_sync()
        return run

    def _init(self, mode: str) -> Any:
        # Without this, wandb reports its own troubles to its makers, which holds up the exit for ten
        # seconds where the network swallows packets, offline as well.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        # Silence has to be set up before the log-in: a silent wandb does not prompt.
        settings = wandb.Settings(silent=True, console="off", init_timeout=INIT_SECONDS)
        wandb.setup(settings)
        atexit.register(self._finish)  # runs before wandb's own exit hook, which waits without end
        run = wandb.init(
            project=self._settings.project,
            entity=self._settings.entity,
            name=self._run_dir.name,
            id=self._id(),
            resume="allow",
            mode=mode,  # pyright: ignore[reportArgumentType]
            dir=self._run_dir,
            config=self._facts,
            settings=settings,
        )
        run.define_metric("*", step_metric="train/step")
        for name in (run_files.CONFIG, run_files.OVERRIDES, run_files.GIT_DIFF):
            if (self._run_dir / name).exists():
                run.save(self._run_dir / name, base_path=self._run_dir, policy="now")
        return run

    def _id(self) -> str:
        path = self._run_dir / "wandb_id"
        if not path.exists():
            path.write_text(secrets.token_hex(4))
        return path.read_text().strip()

    def _try(self, call: Callable[[], Any]) -> Any:
        """The call's result; None, and once a line, if it fails."""
        try:
            return call()
        except Exception as error:
            self._complain(_first_line(error))
            return None

    def _complain(self, what: str) -> None:
        if not self._complained:
            self._complained = True
            announce(f"wandb: {what}; training goes on, metrics.jsonl has everything")

    def _suggest_sync(self) -> None:
        folder = shlex.quote(str(self._run_dir / "wandb"))
        self._commands["upload"] = f"wandb sync {folder}/*run-*"


def choose_mode(config: WandbConfig) -> tuple[str, str]:
    """Whether to log online, offline or not at all, and why.

    `logger.wandb.mode` wins, then WANDB_MODE; left open, a key decides. Without a key, online becomes
    offline: wandb would ask for one. Raises ValueError for a mode that does not exist.
    """
    source = "logger.wandb.mode" if config.mode else "WANDB_MODE"
    mode = config.mode or os.environ.get("WANDB_MODE")
    if mode and mode not in MODES:
        raise ValueError(f"{source}={mode}: wandb has no such mode here; choose {', '.join(MODES)}")
    if mode in ("offline", "disabled"):
        return mode, f"{source}={mode}"
    if _has_key():
        return "online", "an API key was found"
    return "offline", "no API key in WANDB_API_KEY or .netrc; `wandb login` stores one"


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    names = [os.environ["NETRC"]] if "NETRC" in os.environ else ["~/.netrc", "~/_netrc"]
    return any(_machines(Path(name).expanduser()) & _hosts() for name in names)


def _machines(path: Path) -> set[str]:
    try:
        return set(netrc.netrc(path).hosts)
    except (OSError, netrc.NetrcParseError):
        return set()


def _hosts() -> set[str]:
    """The machines whose key `wandb login` may have stored."""
    if base := os.environ.get("WANDB_BASE_URL"):
        return {urlsplit(base).netloc}
    return {"api.wandb.ai", "api.forge.coreweave.com"}


def _tear_down() -> None:
    """End wandb's own process, and its claim on the run's id."""
    import wandb

    wandb.teardown()


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
