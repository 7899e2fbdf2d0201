"""A folder for `--config-dir`, as a user may have one."""

from pathlib import Path


def own_configs(tmp_path: Path) -> Path:
    """A folder whose name needs quotes, with one model that has no recipe."""
    folder = tmp_path / "my 'own' configs"
    write(folder / "model/mine.yaml", "# A model without a recipe.\ndim: 128\n")
    return folder


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def write_experiment(folder: Path, name: str, body: str) -> None:
    write(folder / f"experiment/{name}.yaml", f"# @package _global_\n# What is asked?\n{body}")
