"""Which checkpoint a run goes on from."""

from pathlib import Path

from deepseek_mini import run_files
from deepseek_mini.config import Config
from deepseek_mini.run_files import latest_checkpoint


def find_checkpoint(config: Config, run_dir: Path) -> Path | None:
    """The checkpoint that `resume` asks for; None starts from the beginning.

    Raises ValueError if `resume=never` meets a used directory, or `resume=PATH` names nothing to load.
    """
    if config.resume == "auto":
        return latest_checkpoint(run_dir / run_files.CHECKPOINTS)
    if config.resume == "never":
        if (run_dir / run_files.LEDGER).exists():
            raise ValueError(
                f"resume=never: {run_dir} holds a run already; remove it or choose another run_dir"
            )
        return None
    path = Path(config.resume).expanduser()
    candidates = (path, latest_checkpoint(path), latest_checkpoint(path / run_files.CHECKPOINTS))
    for candidate in candidates:
        if candidate is not None and (candidate / "state.json").exists():
            return candidate
    raise ValueError(
        f"resume={config.resume}: no checkpoint is there; give auto, never, a run directory or one of its "
        "checkpoints/step_*"
    )
