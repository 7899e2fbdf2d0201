"""The extrapolation as one JSON object, and in the conventions that published figures use."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepseek_mini.cost.draws import band
from deepseek_mini.cost.extrapolate import PUBLISHED, Extrapolation
from deepseek_mini.cost.flops import flops_per_token
from deepseek_mini.cost.plan import Plan
from deepseek_mini.cost.prices import Price
from deepseek_mini.cost.run_evidence import RunEvidence
from deepseek_mini.cost.step import StepTime
from deepseek_mini.cost.tiers import Tier


def as_json(result: Extrapolation) -> dict[str, Any]:
    """What `--json` prints."""
    best, price = result.best, result.price
    return {
        "run": result.run.run,
        "target": result.plan.model,
        "tokens": result.plan.tokens,
        "cluster": {"device": result.plan.cluster.gpu.name, "n_gpus": result.plan.cluster.n_gpus},
        "price_per_gpu_hour": asdict(price),
        "tiers": {tier.name: _tier_json(tier, result) for tier in result.tiers},
        "evidence": {tier.name: tier.evidence for tier in result.tiers},
        "steady_state": best and best.run and _hours_json(best.run.steady, result),
        "metered": best
        and best.run
        and {
            **_hours_json(best.run.metered, result),
            "lines": {name: band(hours) for name, hours in best.run.lines.items()},
            "dollar_lines": extra_dollars(result),
        },
        "flops_per_token": flops_by_convention_of(result.plan),
        "step": _step_json(result),
        "tornado": [asdict(swing) for swing in result.tornado],
        "published": PUBLISHED.get(result.plan.model),
        "this_run": {
            **{k: v for k, v in asdict(result.run).items() if k != "lines"},
            "steady_device_hours": result.run.steady_device_hours,
            "lines": [asdict(line) for line in result.run.lines],
        },
        "mfu_carried_over": {
            "gpu_hours": result.carried_over,
            "label": carried_over_label(result.run),
        },
        "claims": [asdict(claim) for claim in result.claims],
    }


def carried_over_label(run: RunEvidence) -> str:
    """What the run's own MFU is worth on the target."""
    where = "one GPU" if run.is_gpu and run.devices == 1 else f"{run.devices} GPUs" if run.is_gpu else "a CPU"
    return f"not evidence: measured on {where} ({run.device}), with no expert all-to-all and no pipeline"


def flops_by_convention_of(plan: Plan) -> dict[str, float]:
    """Training FLOPs per token in the conventions that published figures use."""
    shape, length = plan.shape, plan.sequence_length
    return {
        "causal": flops_per_token(shape, length),
        "noncausal": flops_per_token(shape, length, causal=False),
        "causal_with_mtp": flops_per_token(shape, length, mtp=True),
        "noncausal_with_mtp": flops_per_token(shape, length, causal=False, mtp=True),
        "causal_with_gate": flops_per_token(shape, length, gate=True),
        "six_n": 6.0 * plan.active_parameters,
    }


def mfu_by_convention(plan: Plan, hours: float) -> dict[str, tuple[float, float | None]]:
    """MFU of a run of so many GPU-hours by convention, against the BF16 and the FP8 peak."""
    seconds, gpu = hours * 3600, plan.cluster.gpu
    result = {}
    for name, flops in flops_by_convention_of(plan).items():
        rate = flops * plan.tokens / seconds / 1e12
        result[name] = (rate * 1e12 / plan.cluster.peak, rate / gpu.fp8 if gpu.fp8 else None)
    return result


def phases_of(step: StepTime) -> dict[str, float]:
    """Seconds of rank 0's phases, as in Table 4 of arXiv:2505.09343."""
    phases = {name: float(seconds[0]) for name, seconds in step.timeline.phases(0).items()}
    return phases | {"optimizer": float(step.optimizer[0])}


def _tier_json(tier: Tier, result: Extrapolation) -> dict[str, Any] | None:
    if tier.hours is None:
        return None
    trillions, price = result.plan.tokens / 1e12, result.price
    return {
        "gpu_hours": tier.hours,
        "gpu_hours_per_trillion_tokens": tier.hours["p50"] / trillions,
        "gpu_hours_per_trillion_tokens_band": {name: hours / trillions for name, hours in tier.hours.items()},
        "dollars": _dollars_of_band(tier.hours, price),
        "days": _each(tier.hours, lambda hours: hours / result.plan.cluster.n_gpus / 24),
    }


def _hours_json(hours: NDArray[np.float64], result: Extrapolation) -> dict[str, Any]:
    spread, trillions = band(hours), result.plan.tokens / 1e12
    return {
        "gpu_hours": spread,
        "gpu_hours_per_trillion_tokens": _each(spread, lambda value: value / trillions),
        "dollars": dollars(hours, result.price),
        "days": _each(spread, lambda value: value / result.plan.cluster.n_gpus / 24),
    }


def dollars(hours: NDArray[np.float64], price: Price) -> dict[str, float]:
    """P10, P50 and P90 of hours times a price, drawn independently."""
    shares = np.random.default_rng(2).permutation((np.arange(len(hours)) + 0.5) / len(hours))
    return band(hours * price.drawn(shares))


def extra_dollars(result: Extrapolation) -> dict[str, float]:
    """Dollars beside the run's own GPU-hours, that the user has set; shares are of its P50."""
    if result.best is None or result.best.run is None:
        return {}
    return result.extras.lines(dollars(result.best.run.metered, result.price)["p50"])


def _dollars_of_band(hours: dict[str, float], price: Price) -> dict[str, float]:
    """Of a tier: each percentile at the typical price, so that it compares hours only."""
    return _each(hours, lambda value: value * price.typical)


def _each(values: dict[str, float], change: Callable[[float], float]) -> dict[str, float]:
    return {name: change(value) for name, value in values.items()}


def _step_json(result: Extrapolation) -> dict[str, Any] | None:
    if not result.steps:
        return None
    return {
        layout: {
            "seconds": float(step.seconds[0]),
            "phases_of_rank_0": phases_of(step),
            "bubble_of_ranks": [
                float(step.timeline.bubble(rank)[0]) for rank in range(len(step.timeline.ranks))
            ],
        }
        for layout, step in result.steps.items()
    } | {"shares": result.shares, "memory_of_ranks": result.memory}
