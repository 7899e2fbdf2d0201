import io
from pathlib import Path

import pytest

from deepseek_mini.tracking import Header, console


class Terminal(io.StringIO):
    """A file that says it is a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _no_screen_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "_screen", None)
    for name in ("FORCE_COLOR", "NO_COLOR", "COLUMNS", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


@pytest.fixture
def header() -> Header:
    return Header(
        run="runs/tiny-1ab58d",
        start="from the beginning",
        device="a processor (no GPU found)",
        precision="fp32 (no BF16 hardware)",
        parameters="12.4M total, 7.1M active per token",
        flops="48.3M per token (causal)",
        peak="92G, measured",
        data="standard library, 24.1 MB",
        plan="1,000 steps, 4.1M tokens",
        steps=1000,
    )


@pytest.fixture
def terminal() -> Terminal:
    return Terminal()


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    (tmp_path / "overrides.txt").write_text("model=tiny\ndata.path=my books/*.txt\n")
    return tmp_path
