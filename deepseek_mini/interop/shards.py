"""Reading weights file by file: no more than one file is open, and its tensors go straight to their places.

All names, shapes and dtypes are checked against the model from the files' headers alone, before memory is
taken or anything is written.
"""

from collections.abc import Iterable, Mapping
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from deepseek_mini.interop.files import read_object, shown
from deepseek_mini.interop.names import Place
from deepseek_mini.precision.blocks import dequantize_weight, scale_shape
from deepseek_mini.tensor_files import open_tensors

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
FP8 = "F8_E4M3"
FLOATS = ("F32", "BF16", "F16", "F64", FP8)
SCALES = ("F32", "F8_E8M0")
SCALE_SUFFIX = "_scale_inv"
LONGEST_NAME = 200
ADVICE = "fetch or export it again"


class Header(NamedTuple):
    """What a file says of one of its tensors."""

    file: Path
    shape: list[int]
    dtype: str
    """As safetensors names it: F32, BF16, F8_E4M3, ..."""


def release_headers(directory: Path) -> dict[str, Header]:
    """Every tensor of a release: its index and its files, or its single file.

    Raises ValueError naming file and tensor where the files are not what the index says.
    """
    index = directory / INDEX
    if not index.exists():
        if not (directory / SINGLE).exists():
            raise ValueError(
                f"{directory}: neither {INDEX} nor {SINGLE} is there; only safetensors are read, no pickles"
            )
        return read_headers([directory / SINGLE])
    files = _indexed_files(index)
    headers = read_headers(sorted(set(files.values())))
    for name in sorted(files.keys() | headers.keys()):
        if name not in headers:
            raise ValueError(f"{files[name]}: tensor {name} is missing, which {INDEX} tells of; {ADVICE}")
        if headers[name].file != files.get(name):
            raise ValueError(f"{headers[name].file}: tensor {name} is there, and {INDEX} does not tell of it")
    return headers


def _indexed_files(index: Path) -> dict[str, Path]:
    """The file of every tensor; only files of the index's own directory."""
    names = read_object(index).get("weight_map")
    if not isinstance(names, dict):
        raise ValueError(f"{index}: has no weight_map")
    for tensor, file in names.items():
        _check_name(index, tensor)
        if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
            raise ValueError(
                f"{index}: tensor {tensor} is said to be in {shown(file)}, which is not the plain name of a "
                "safetensors file"
            )
    return {tensor: index.parent / file for tensor, file in names.items()}


def read_headers(files: Iterable[Path]) -> dict[str, Header]:
    """The tensors of some files. Raises ValueError if one is missing or damaged, or two hold the same."""
    headers: dict[str, Header] = {}
    for path in files:
        with open_tensors(path, ADVICE) as file:
            for name in file.keys():  # noqa: SIM118
                _check_name(path, name)
                if name in headers:
                    raise ValueError(f"{path}: tensor {name} is in {headers[name].file.name} as well")
                entry = file.get_slice(name)
                headers[name] = Header(path, entry.get_shape(), entry.get_dtype())
    return headers


def _check_name(path: Path, name: str) -> None:
    """Raise ValueError for a name that would not fit on a line of an error's message."""
    if len(name) > LONGEST_NAME or not name.isprintable():
        raise ValueError(f"{path}: {shown(name)} is no name of a tensor")


def check_fit(
    headers: Mapping[str, Header],
    places: Mapping[str, Place],
    tensors: Mapping[str, Tensor],
    source: Path,
    keys: str,
) -> None:
    """Raise ValueError, naming file and tensor, unless every tensor has a place and every place a tensor.

    `tensors` are the model's by name, on any device; `keys` is what describes it, for the user to check. An
    MTP layer's copies may be left out.
    """
    matrices = {name: header for name, header in headers.items() if len(header.shape) == 2}
    scales = {name + SCALE_SUFFIX: header for name, header in matrices.items() if header.dtype == FP8}
    for name, header in headers.items():
        if name in scales:
            _check_header(name, header, scale_shape(*scales[name].shape), SCALES, keys)
        elif name in places:
            _check_header(name, header, list(places[name].of(tensors).shape), FLOATS, keys)
        else:
            raise ValueError(f"{header.file}: tensor {name} is no part of this model; check {keys}")
    for name, header in scales.items():
        if name not in headers:
            raise ValueError(f"{header.file}: tensor {name} is missing, the scales of FP8 values; {ADVICE}")
    for name, place in places.items():
        if name not in headers and not place.is_copy:
            raise ValueError(f"{source}: tensor {name} is missing; {ADVICE}, or check {keys}")


def _check_header(name: str, header: Header, shape: list[int], dtypes: tuple[str, ...], keys: str) -> None:
    if header.shape != shape:
        raise ValueError(
            f"{header.file}: tensor {name} has shape {header.shape}, this model's is {shape}; check {keys}"
        )
    if header.dtype not in dtypes or (header.dtype == FP8 and len(shape) != 2):
        raise ValueError(f"{header.file}: tensor {name} has dtype {header.dtype}, not one of {dtypes}")


@torch.no_grad()
def fill(headers: Mapping[str, Header], places: Mapping[str, Place], tensors: Mapping[str, Tensor]) -> None:
    """Copy the files' tensors to their places, FP8 blocks as float32; after `check_fit`.

    Raises ValueError naming file and tensor if an MTP layer's copy is not the same as the original, or if
    numbers are not finite.
    """
    filled: set[str] = set()
    weights = sorted((header.file, name) for name, header in headers.items() if name in places)
    for path, entries in groupby(weights, key=lambda entry: entry[0]):
        with open_tensors(path, ADVICE) as file:
            for _, name in entries:
                place = places[name]
                target, weight = place.of(tensors), _read_weight(file, name, headers)
                if place.expert is None and place.parameter in filled:
                    if not torch.equal(weight.to(target), target):
                        raise ValueError(
                            f"{path}: tensor {name} or one of its copies is another than {place.parameter}; "
                            "this model shares one among all its MTP layers"
                        )
                    continue
                target.copy_(weight)
                if not target.isfinite().all():
                    raise ValueError(f"{path}: tensor {name} is not finite; {ADVICE}")
                filled.add(place.parameter)


def _read_weight(file: safe_open, name: str, headers: Mapping[str, Header]) -> Tensor:
    weight = file.get_tensor(name)
    if headers[name].dtype != FP8:
        return weight
    scale_name = name + SCALE_SUFFIX
    if headers[scale_name].file == headers[name].file:
        return dequantize_weight(weight, file.get_tensor(scale_name))
    with open_tensors(headers[scale_name].file, ADVICE) as other:
        return dequantize_weight(weight, other.get_tensor(scale_name))
