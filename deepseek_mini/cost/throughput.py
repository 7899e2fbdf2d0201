"""Our FLOPs per token against those that vendors imply with pairs of tokens/s and TFLOPS.

A vendor divides its model FLOPs by the same time as its tokens, so the quotient of the two columns is its
FLOPs per token, whatever the hardware did.
"""

import re
from dataclasses import dataclass
from statistics import median
from typing import Any

from deepseek_mini.cost.flops import flops_per_token
from deepseek_mini.cost.shape import Shape, shape_of_row
from deepseek_mini.cost.tables import number, read_table

PAIR = ("tokens_per_s_per_gpu", "model_tflops_per_gpu", "seq_len")
"""Columns of which a pair is made; a row that lacks one is not scored."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One row: FLOPs per token as the vendor counts them, beside ours."""

    model: str
    container: str
    system: str
    sequence_length: int | None
    vendor: float | None
    """None where the row lacks one of the two figures."""
    ours: float | None
    """None where the model cannot be expressed."""
    excluded: str | None
    """Why the row does not count, in words."""

    @property
    def deviation(self) -> float | None:
        return None if self.ours is None or self.vendor is None else self.ours / self.vendor - 1


def score_pairs(rows: list[dict[str, str]]) -> list[Pair]:
    """A pair for each row. Raises ValueError naming the line and column if a cell is wrong."""
    if "model" not in rows[0]:
        raise ValueError("no column 'model'; see deepseek_mini/cost/data/nvidia_throughput.csv")
    shapes = {model_key(row["model"]): shape_of_row(row) for row in read_table("model_shapes")}
    wrong = read_table("known_wrong_pairs")
    pairs = []
    for line, row in enumerate(rows, start=2):
        try:
            pairs.append(_score(row, shapes, wrong))
        except ValueError as error:
            raise ValueError(f"line {line}: {error}") from error
    return pairs


def summarise_pairs(pairs: list[Pair]) -> dict[str, Any]:
    """Median absolute deviation, share within 0.5%, and the 95th percentile, over the rows that count.

    Raises ValueError if no row counts.
    """
    deviations = sorted(abs(p.deviation) for p in pairs if p.deviation is not None and not p.excluded)
    if not deviations:
        raise ValueError("no row has both figures and a model of data/model_shapes.csv; add its shape there")
    return {
        "median_abs_dev": median(deviations),
        "within_half_percent": sum(d <= 0.005 for d in deviations) / len(deviations),
        "worst": deviations[-1],
        "n_scored": len(deviations),
        "n_excluded": len(pairs) - len(deviations),
    }


def _score(row: dict[str, str], shapes: dict[str, Shape], wrong: list[dict[str, str]]) -> Pair:
    values = {name: number(row, name) for name in PAIR}
    if any(value is not None and value <= 0 for value in values.values()):
        raise ValueError(f"{', '.join(PAIR)} must be positive numbers")
    tokens, tflops, length = values.values()
    model, container = row["model"], row.get("container", "")
    shape = shapes.get(model_key(model))
    ours = flops_per_token(shape, int(length), mtp=with_mtp(model)) if shape and length else None
    reason = None if shape else "no shape: not a transformer that the counter expresses, or not listed"
    if empty := [name for name, value in values.items() if value is None]:
        reason = f"no {', '.join(empty)}"
    for known in wrong:
        if model_key(model) == model_key(known["model"]) and release(container) <= release(
            known["up_to_container"]
        ):
            reason = known["reason"]
    return Pair(
        model=model,
        container=container,
        system=row.get("system", ""),
        sequence_length=None if length is None else int(length),
        vendor=tflops * 1e12 / tokens if tflops and tokens else None,
        ours=ours,
        excluded=reason,
    )


def model_key(model: str) -> str:
    """`DeepSeekV3 (w/o MTP)` and `DeepSeek-V3` are one model."""
    return re.sub(r"[^a-z0-9]", "", re.sub(r"\(.*?\)", "", model).lower())


def with_mtp(model: str) -> bool:
    """MTP is trained unless the row says otherwise, on models that have it."""
    return re.search(r"(w/o|without|no)\s+mtp", model, re.IGNORECASE) is None


def release(container: str) -> tuple[int, ...]:
    """`26.04.01 NeMo Container` -> (26, 4, 1)."""
    match = re.match(r"[\d.]+", container.strip())
    return tuple(int(part) for part in match[0].split(".") if part) if match else ()
