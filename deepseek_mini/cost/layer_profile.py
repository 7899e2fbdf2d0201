"""Milliseconds of one transformer layer's pieces on a device: measured here, or the published H800 trace.

The file is JSON: `format` 1, `name`, `kind` (`measured`, or `reference` for somebody else's), `label`,
`device`, `precision`, `model` (a shipped model's name), `tokens` of the micro-batch, `sequence_length`,
`expert_parallel` (the GPUs that one layer's experts are spread over), `versions`, `source`, and
`milliseconds`: of each of `PIECES` the parts `gemm`, `core` (of attention) and `elementwise`, as GPU time.
`overlapped_pair_milliseconds` is a forward and a whole backward of one MoE layer that overlap with their
communication; null where it was not measured.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepseek_mini.cost.tables import DATA, read_json

REFERENCE = DATA / "h800_v3_trace.json"

PIECES = tuple(
    f"{part}_{work}" for part in ("attention", "mlp") for work in ("forward", "input_grad", "weight_grad")
)
PARTS = ("gemm", "core", "elementwise")


@dataclass(frozen=True, slots=True)
class LayerProfile:
    name: str
    kind: str
    label: str
    device: str
    precision: str
    model: str
    tokens: int
    sequence_length: int
    expert_parallel: int
    seconds: dict[str, dict[str, float]]
    """Piece -> part -> seconds."""
    pair_seconds: float | None
    source: str


def read_layer_profile(path: Path = REFERENCE) -> LayerProfile:
    """Read and check a profile. Raises ValueError naming the file and what is missing or not positive."""
    content = read_json(path)
    if content.get("format") != 1:
        raise ValueError(
            f"{path}: format {content.get('format')!r} is not 1, the layer profile this version reads"
        )
    try:
        return _parse(content)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not a layer profile ({type(error).__name__}: {error})") from error


def _parse(content: dict[str, Any]) -> LayerProfile:
    pair = content.get("overlapped_pair_milliseconds")
    profile = LayerProfile(
        name=content["name"],
        kind=content["kind"],
        label=content["label"],
        device=content["device"],
        precision=content["precision"],
        model=content["model"],
        tokens=int(content["tokens"]),
        sequence_length=int(content["sequence_length"]),
        expert_parallel=int(content["expert_parallel"]),
        seconds={
            piece: {part: float(content["milliseconds"][piece][part]) / 1e3 for part in PARTS}
            for piece in PIECES
        },
        pair_seconds=None if pair is None else float(pair) / 1e3,
        source=content["source"],
    )
    if profile.kind not in ("measured", "reference"):
        raise ValueError("kind must be measured or reference")
    if min(profile.tokens, profile.sequence_length, profile.expert_parallel) < 1:
        raise ValueError("tokens, sequence_length and expert_parallel must be positive")
    if any(sum(parts.values()) <= 0 or min(parts.values()) < 0 for parts in profile.seconds.values()):
        raise ValueError("milliseconds must be positive, and those of parts not negative")
    if profile.pair_seconds is not None and profile.pair_seconds <= 0:
        raise ValueError("overlapped_pair_milliseconds must be positive, or null")
    return profile
