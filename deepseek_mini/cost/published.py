"""Hours of a model from the throughput that others have published of the same model on such GPUs."""

import math
from collections import defaultdict
from dataclasses import dataclass
from statistics import median

import numpy as np

from deepseek_mini.cost.devices import Gpu, find_gpu
from deepseek_mini.cost.flops import flops_per_token
from deepseek_mini.cost.plan import Plan
from deepseek_mini.cost.run_model import Hours
from deepseek_mini.cost.shape import Shape, shape_of_row
from deepseek_mini.cost.tables import number, read_table
from deepseek_mini.cost.throughput import model_key, release, with_mtp

OTHER_LINKS = 0.1
"""Deviation of log tokens/s where the GPU has the same peaks but other links or memory; assumed."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """One published throughput that a prediction stands on."""

    tokens_per_second: float
    """Per GPU, with MTP if the target trains it."""
    system: str
    n_gpus: int
    precision: str
    container: str
    source: str
    same_gpu: bool

    @property
    def text(self) -> str:
        software = f"{self.precision or 'precision not named'}, {self.container or 'software not named'}"
        where = f"{self.system} with {self.n_gpus:,} GPUs"
        return f"{self.tokens_per_second:,.0f} tokens/s per GPU on {where} ({software}; {self.source})"


def find_evidence(plan: Plan) -> Evidence | None:
    """The newest row of the same model on the same GPU, or on one with the same peaks; None if there is none.

    Rows of the model's own makers are left out: their throughput is what is to be predicted. So are BF16 rows
    where there are FP8 ones.
    """
    known = {row["model"]: row for row in read_table("plans")}.get(plan.model)
    if known is None:
        return None
    name = model_key(known["published_as"])
    rows = [row for row in _rows() if model_key(row["model"]) == name and row["org"] != known["org"]]
    alike = [row for row in rows if _alike(find_gpu(row["system"]), plan.cluster.gpu)]
    same = [row for row in alike if find_gpu(row["system"]) == plan.cluster.gpu]
    candidates = same or alike
    if not candidates:
        return None
    newest = max(candidates, key=lambda row: (row["precision"] != "BF16", release(row["container"])))
    tokens = number(newest, "tokens_per_s_per_gpu")
    assert tokens
    trains_mtp = plan.shape.mtp_depth > 0
    counted = flops_per_token(_shape(name), plan.sequence_length, mtp=with_mtp(newest["model"]))
    wanted = flops_per_token(plan.shape, plan.sequence_length, mtp=trains_mtp)
    return Evidence(
        tokens * counted / wanted,
        newest["system"],
        int(newest["n_gpus"]),
        newest["precision"],
        newest["container"],
        newest["source"],
        same_gpu=bool(same),
    )


def steady_from(evidence: Evidence, plan: Plan, imbalance: Hours, seed: int = 1) -> Hours:
    """Steady GPU-hours, a draw for each imbalance.

    Vendors balance routing by force: the routed experts' share of the time grows with their imbalance. The
    spread is what releases of the same software differ by on the same system.
    """
    shape, length = plan.shape, plan.sequence_length
    routed = 6 * shape.n_moe_layers * shape.top_k * shape.expert_weights / flops_per_token(shape, length)
    deviation = math.hypot(release_spread(), 0.0 if evidence.same_gpu else OTHER_LINKS)
    noise = np.random.default_rng(seed).standard_normal(len(imbalance)) if len(imbalance) > 1 else np.zeros(1)
    hours = plan.tokens / evidence.tokens_per_second / 3600
    return hours * (1 + routed * (imbalance - 1)) * np.exp(deviation * noise)


def release_spread() -> float:
    """Deviation of log tokens/s between releases, median over (model, system, number of GPUs, precision)."""
    groups: dict[tuple[str, ...], list[float]] = defaultdict(list)
    for row in read_table("nvidia_throughput"):
        tokens = number(row, "tokens_per_s_per_gpu")
        assert tokens
        kind = "BF16" if row["precision"] == "BF16" else "FP8"
        groups[model_key(row["model"]), row["system"], row["n_gpus"], kind].append(math.log(tokens))
    return median(float(np.std(values, ddof=1)) for values in groups.values() if len(values) > 1)


def _rows() -> list[dict[str, str]]:
    nvidia = [{**row, "org": "NVIDIA"} for row in read_table("nvidia_throughput")]
    return nvidia + read_table("v3_throughput")


def _shape(name: str) -> Shape:
    """Of the model as it was published."""
    return next(shape_of_row(row) for row in read_table("model_shapes") if model_key(row["model"]) == name)


def _alike(a: Gpu, b: Gpu) -> bool:
    return (a.bf16, a.fp8) == (b.bf16, b.fp8)
