"""Which checkpoint a run goes on from."""

from pathlib import Path

from deepseek_mini import run_files
from deepseek_mini.config import Config
from deepseek_mini.run_files import latest_checkpoint
from deepseek_mini.tracking import announce
from deepseek_mini.training.checkpoint import read_state


def find_checkpoint(config: Config, run_dir: Path) -> Path | None:
    """The checkpoint that `resume` asks for; None starts from the beginning.

    A run that has come further than the PATH outside of it where it began goes on from its own newest one, so
    that the same command goes on. A PATH inside is a way back, and taken.

    Raises ValueError if `resume=never` meets a used directory, or `resume=PATH` names nothing to load.
    """
    folder = run_dir / run_files.CHECKPOINTS
    if config.resume == "auto":
        return latest_checkpoint(folder)
    if config.resume == "never":
        if run_files.is_used(run_dir):
            raise ValueError(
                f"resume=never: {run_dir} holds a run already; remove it or choose another run_dir"
            )
        return None
    asked = _checkpoint_at(config.resume)
    if asked.resolve().parent == folder.resolve():
        return folder / asked.name
    own = latest_checkpoint(folder)
    if own is None or read_state(own)[0].step <= read_state(asked)[0].step:
        return asked
    announce(f"{run_dir} has come further than {asked}: going on from its own {own.name}")
    return own


def _checkpoint_at(resume: str) -> Path:
    """The checkpoint at PATH, or the newest one of a run there."""
    path = Path(resume).expanduser()
    candidates = (path, latest_checkpoint(path), latest_checkpoint(path / run_files.CHECKPOINTS))
    for candidate in candidates:
        if candidate is not None and (candidate / "state.json").exists():
            return candidate
    raise ValueError(
        f"resume={resume}: no checkpoint is there; give auto, never, a run directory or one of its "
        "checkpoints/step_*"
    )
