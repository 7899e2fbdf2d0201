"""Weights from elsewhere: a release made into a run directory, and the start of a run from such weights."""

import math
import shutil
from dataclasses import fields, replace
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from deepseek_mini import run_files
from deepseek_mini.config import Attention, Config, DataConfig, ModelConfig
from deepseek_mini.cost.flops import mtp_params, total_params
from deepseek_mini.data import load_tokenizer
from deepseek_mini.data.tokenizer import Tokenizer
from deepseek_mini.interop.files import fitting_tokenizer, whole_directory
from deepseek_mini.interop.hf_config import from_release
from deepseek_mini.interop.names import Place, has_layer, own_places, release_places
from deepseek_mini.interop.shards import SINGLE, Header, check_fit, fill, read_headers, release_headers
from deepseek_mini.model.transformer import Transformer, build_on_meta

HF_CONFIG = "config.json"
FIRST_CHECKPOINT = f"{run_files.CHECKPOINT_PREFIX}{0:08d}"
NOT_COMPARED = ("init_from", "init_std", "init_noise", "moe", "mtp", "n_kv_heads")
"""Keys that say nothing of what the weights compute, or whose shapes do."""
FAR_TOO_LARGE = 10


def import_release(source: Path, out: Path) -> str:
    """Make `out`, which every script takes as a run, from a directory in the layout of DeepSeek's releases.

    Beside the model there is never more than one file's tensors in memory. MTP layers that config.json
    tells of but the files lack, as transformers saves a model, are left out. Returns what was imported.

    Raises ValueError naming file, and tensor or key, for whatever does not fit; `out` is whole or absent.
    """
    config = from_release(source / HF_CONFIG)
    headers = release_headers(source)
    if not has_layer(headers, config.n_layers):
        config = replace(config, mtp=replace(config.mtp, depth=0))
    _refuse_boasting(source, config, headers)
    shapes = build_on_meta(config).state_dict()
    places = release_places(shapes, config.n_layers)
    check_fit(headers, places, shapes, source, HF_CONFIG)
    tokenizer = fitting_tokenizer(source / run_files.TOKENIZER, source / HF_CONFIG, config.vocab_size)
    with whole_directory(out) as partial:
        tensors = {name: torch.empty(shape.shape, dtype=torch.float32) for name, shape in shapes.items()}
        fill(headers, places, tensors)
        write_run(partial, _run_config(config, out if tokenizer else None), tensors)
        if tokenizer is not None:
            shutil.copyfile(source / run_files.TOKENIZER, partial / run_files.TOKENIZER)
    parameters = sum(tensor.numel() for tensor in tensors.values())
    missing = "" if tokenizer else ", no tokenizer"
    return f"{parameters:,} parameters, MTP depth {config.mtp.depth}{missing}"


def _refuse_boasting(source: Path, config: ModelConfig, headers: dict[str, Header]) -> None:
    """Refuse a config.json that tells of far more than the files hold, before such a model is built.

    What is a little too large gets built, without memory, and its first tensor that does not fit is named.
    """
    told = total_params(config) + mtp_params(config)
    held = sum(math.prod(header.shape) for header in headers.values())
    if told > FAR_TOO_LARGE * held:
        raise ValueError(
            f"{source / HF_CONFIG}: tells of {config.n_layers} layers and {told:,} parameters, but the files "
            f"hold {held:,} numbers"
        )


def write_run(directory: Path, config: Config, tensors: dict[str, Tensor]) -> None:
    """The files that make a directory a run: its config, and one checkpoint of weights alone."""
    checkpoint = directory / run_files.CHECKPOINTS / FIRST_CHECKPOINT
    checkpoint.mkdir(parents=True)
    save_file(tensors, checkpoint / SINGLE)
    (checkpoint.parent / "latest").write_text(checkpoint.name + "\n")
    (directory / run_files.CONFIG).write_text(run_files.config_text(config))


def _run_config(model: ModelConfig, out: Path | None) -> Config:
    """A run of this model; its tokenizer is the one in `out`."""
    data = DataConfig(sequence_length=min(DataConfig().sequence_length, model.max_seq_len))
    if out is not None:
        data = replace(data, tokenizer=str(out.absolute() / run_files.TOKENIZER))
    return Config(model=model, data=data)


class Source(NamedTuple):
    """Weights that a run can start from."""

    path: Path
    """The directory or file that errors name."""
    headers: dict[str, Header]
    places: dict[str, Place]
    config: ModelConfig | None
    tokenizer: Path


def load_initial_weights(model: Transformer, tokenizer: Tokenizer) -> str:
    """Start `model` from the weights at its `init_from`; returns the line that says what was loaded.

    `tokenizer` is the one of the run's data. Keys whose value there was another, but which leave the
    shapes as they are, are named in that line.

    Raises ValueError naming file and tensor for weights that do not fit the model.* keys, and naming both
    tokenizers if they are not the same.
    """
    assert model.config.init_from is not None
    tensors = model.state_dict()
    source = _find_source(Path(model.config.init_from).expanduser(), tensors, model.config)
    check_fit(source.headers, source.places, tensors, source.path, "the model.* keys")
    said = [f"{len(source.headers)} tensors from {source.path}"]
    if not source.tokenizer.exists():
        said.append("without a tokenizer to compare with the data's")
    elif load_tokenizer(source.tokenizer).identity() != tokenizer.identity():
        raise ValueError(
            f"model.init_from={model.config.init_from}: its {source.tokenizer} is another tokenizer than the "
            f"data's, which data.tokenizer names; set data.tokenizer={source.tokenizer}"
        )
    if source.config is not None:
        said += _changes(source.config, model.config)
    fill(source.headers, source.places, tensors)
    return "; ".join(said)


def _find_source(path: Path, tensors: dict[str, Tensor], model: ModelConfig) -> Source:
    """What is at `path`: a release, a run, or a checkpoint of a run."""
    if (path / HF_CONFIG).exists():
        if model.attention is not Attention.mla:
            raise ValueError(
                f"model.attention={model.attention}: the weights at model.init_from={path} are those of "
                "latent attention; set model.attention=mla"
            )
        config, headers = from_release(path / HF_CONFIG), release_headers(path)
        places = release_places(tensors, model.n_layers)
        return Source(path, headers, places, config, path / run_files.TOKENIZER)
    newest = run_files.latest_checkpoint(path / run_files.CHECKPOINTS) or run_files.latest_checkpoint(path)
    file = (newest or path) / SINGLE
    if not file.exists():
        raise ValueError(
            f"model.init_from={path}: no weights are there; give a run, one of its checkpoints/step_*, or a "
            f"directory with {HF_CONFIG} and safetensors files"
        )
    run_dir = file.absolute().parents[2]
    config = run_files.read_config(run_dir).model if (run_dir / run_files.CONFIG).exists() else None
    return Source(file, read_headers([file]), own_places(tensors), config, run_dir / run_files.TOKENIZER)


def _changes(there: ModelConfig, here: ModelConfig) -> list[str]:
    """The keys that change what the weights compute, such as model.route_scale=1.0 (there 2.5)."""
    keys = [field.name for field in fields(ModelConfig) if field.name not in NOT_COMPARED]
    return [
        f"model.{key}={getattr(here, key)} (there {getattr(there, key)})"
        for key in keys
        if getattr(here, key) != getattr(there, key)
    ]
