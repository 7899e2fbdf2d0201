"""A run's newest checkpoint in the layout of DeepSeek's releases, which Hugging Face loads without own code.

config.json, generation_config.json       the model, and how to generate from it
model-00001-of-0000N.safetensors          the weights, one matrix per expert, MTP behind the last layer
model.safetensors.index.json              which file holds which tensor
tokenizer.json, tokenizer_config.json     the run's tokenizer
README.md                                 a card from the run's own records
"""

import math
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from deepseek_mini import run_files
from deepseek_mini.config import Balance, ModelConfig
from deepseek_mini.data.tokenizer import Tokenizer
from deepseek_mini.interop.card import model_card
from deepseek_mini.interop.files import fitting_tokenizer, whole_directory, write_object
from deepseek_mini.interop.hf_config import to_release
from deepseek_mini.interop.names import GATE_BIAS, Place, own_places, release_places
from deepseek_mini.interop.shards import INDEX, SCALE_SUFFIX, SINGLE, check_fit, read_headers
from deepseek_mini.model.transformer import build_on_meta
from deepseek_mini.precision.blocks import BLOCK, E4M3, quantize_weight, scale_shape
from deepseek_mini.tensor_files import open_tensors, other_way

GIGABYTE = 10**9
QUANTIZATION = {
    "quant_method": "fp8",
    "fmt": "e4m3",
    "activation_scheme": "dynamic",
    "weight_block_size": [BLOCK, BLOCK],
}
IN_FP8 = re.compile(r"\.(self_attn|mlp)\..*proj(_with_mqa)?\.weight")
"""The matrices of attention, MLPs and experts; not the gate, eh_proj, norms, embedding and head."""


@dataclass(frozen=True, slots=True)
class Encoding:
    """How weights are written. Gate biases are float32 always."""

    dtype: torch.dtype = torch.float32
    fp8: bool = False
    """Matrix products in E4M3 with a scale per 128 x 128 block, the rest in `dtype`."""

    def dtype_of(self, name: str) -> torch.dtype:
        if name.endswith("bias"):
            return torch.float32
        return E4M3 if self.fp8 and IN_FP8.search(name) else self.dtype

    def n_bytes(self, name: str, tensor: Tensor) -> int:
        """Bytes of what stands in the files for a tensor of the release."""
        dtype = self.dtype_of(name)
        n_scales = math.prod(scale_shape(*tensor.shape)) if dtype is E4M3 else 0
        return tensor.numel() * dtype.itemsize + n_scales * torch.float32.itemsize

    def encode(self, name: str, tensor: Tensor) -> dict[str, Tensor]:
        """What stands in the files for a tensor of the release."""
        dtype = self.dtype_of(name)
        if dtype is not E4M3:
            return {name: tensor.to(dtype)}
        values, scales = quantize_weight(tensor)
        return {name: values, name + SCALE_SUFFIX: scales}


def export_run(run_dir: Path, out: Path, encoding: Encoding, max_shard_bytes: int = 5 * GIGABYTE) -> str:
    """Write `out` from a run's newest checkpoint; returns what was written.

    Of the weights no more than one file's are in memory. Raises ValueError naming the key of a model that
    the layout cannot express, or the file and tensor of a damaged checkpoint; `out` is whole or absent.
    """
    run_config = run_files.read_config(run_dir)
    config = run_config.model
    content = to_release(config)
    checkpoint = run_files.latest_checkpoint(run_dir / run_files.CHECKPOINTS)
    if checkpoint is None:
        raise ValueError(f"{run_dir / run_files.CHECKPOINTS}: no checkpoint yet; train until the first one")
    path = checkpoint / SINGLE
    own = build_on_meta(config).state_dict()
    check_fit(read_headers([path]), own_places(own), own, path, run_files.CONFIG)
    tokenizer_path = run_dir / run_files.TOKENIZER
    tokenizer = fitting_tokenizer(tokenizer_path, run_dir / run_files.CONFIG, config.vocab_size)

    with whole_directory(out) as partial:
        n_files, size = _write_shards(path, config, encoding, max_shard_bytes, partial)
        ends = {"bos_token_id": None, "eos_token_id": tokenizer.eos_id if tokenizer else None}
        content |= ends | {"torch_dtype": str(encoding.dtype).removeprefix("torch.")}
        write_object(partial / "config.json", content | _quantization(encoding))
        write_object(partial / "generation_config.json", {"_from_model_config": True, **ends})
        if tokenizer is not None:
            shutil.copyfile(tokenizer_path, partial / run_files.TOKENIZER)
            settings = tokenizer_settings(tokenizer, config.max_seq_len)
            write_object(partial / "tokenizer_config.json", settings)
        card = model_card(run_dir, run_config, checkpoint.name, encoding.fp8)
        (partial / "README.md").write_text(card, encoding="utf-8")
    files = f"{n_files} file" + ("" if n_files == 1 else "s")
    return f"{size / 1e6:,.1f} MB of weights in {files}" + ("" if tokenizer else ", no tokenizer")


def tokenizer_settings(tokenizer: Tokenizer, max_seq_len: int) -> dict[str, Any]:
    """The content of tokenizer_config.json."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": tokenizer.eos,
        "pad_token": tokenizer.eos,
        "model_max_length": max_seq_len,
        "clean_up_tokenization_spaces": False,
    }


def _quantization(encoding: Encoding) -> dict[str, Any]:
    return {"quantization_config": QUANTIZATION} if encoding.fp8 else {}


def _write_shards(
    path: Path, config: ModelConfig, encoding: Encoding, max_bytes: int, out: Path
) -> tuple[int, int]:
    """Write the files of weights and their index; how many they are, and the bytes of the tensors."""
    with_bias = replace(config, moe=replace(config.moe, balance=Balance.bias))
    shapes = build_on_meta(with_bias).state_dict()
    places = release_places(shapes, config.n_layers)
    plan = _plan_shards(places, shapes, encoding, max_bytes)
    weight_map, total = {}, 0
    for number, names in enumerate(plan, start=1):
        shard = f"model-{number:05d}-of-{len(plan):05d}.safetensors"
        tensors: dict[str, Tensor] = {}
        with open_tensors(path, other_way(path.parent)) as file:
            for name, tensor in _read(file, {name: places[name] for name in names}, shapes):
                if not tensor.isfinite().all():
                    raise ValueError(f"{path}: tensor {name} is not finite: the run has diverged")
                tensors |= encoding.encode(name, tensor)
        save_file(tensors, out / shard, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, shard)
        total += sum(tensor.nbytes for tensor in tensors.values())
    weight_map = dict(sorted(weight_map.items()))
    write_object(out / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    return len(plan), total


def _plan_shards(
    places: Mapping[str, Place], shapes: Mapping[str, Tensor], encoding: Encoding, max_bytes: int
) -> list[list[str]]:
    """Names of each file's tensors: as many as fit, and at least one."""
    plan: list[list[str]] = [[]]
    used = 0
    for name, place in places.items():
        size = encoding.n_bytes(name, place.of(shapes))
        if plan[-1] and used + size > max_bytes:
            plan.append([])
            used = 0
        plan[-1].append(name)
        used += size
    return plan


def _read(
    file: safe_open, places: Mapping[str, Place], shapes: Mapping[str, Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """The tensors of the release. A gate without a bias, as without bias balancing, has one of zeros."""
    names = set(file.keys())
    for name, place in places.items():
        if place.parameter not in names:
            assert place.parameter.endswith(GATE_BIAS)
            yield name, torch.zeros(shapes[place.parameter].shape)
        elif place.expert is None:
            yield name, file.get_tensor(place.parameter).clone()  # a file's tensors may not share memory
        else:
            yield name, file.get_slice(place.parameter)[place.expert : place.expert + 1].squeeze(0)
