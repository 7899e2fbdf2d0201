"""Everything `scripts/extrapolate.py` tells: the tiers side by side, and the run's lines."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deepseek_mini.config import ModelConfig
from deepseek_mini.cost.breakdown import layer_activation_bytes, rank_memory, step_shares
from deepseek_mini.cost.claim import Claim
from deepseek_mini.cost.claims import popular_claims
from deepseek_mini.cost.draws import LAYOUT, Triangular, central, one_at_a_time, run_priors, sample
from deepseek_mini.cost.flops import flops_per_token
from deepseek_mini.cost.layer_profile import LayerProfile
from deepseek_mini.cost.layout import LAYOUTS, MIDDLE_LAYOUT
from deepseek_mini.cost.plan import Plan
from deepseek_mini.cost.prices import Extras, Price
from deepseek_mini.cost.run_evidence import RunEvidence
from deepseek_mini.cost.run_model import run_hours, steady_hours
from deepseek_mini.cost.shape import Shape
from deepseek_mini.cost.step import Costs, StepTime, step_seconds, step_time
from deepseek_mini.cost.tiers import Tier, layer_tier, prior_tier, published_tier

N_DRAWS = 1500
PUBLISHED: dict[str, dict[str, float]] = {
    "v3_671b": {
        "pre-training at the steady rate": 2_664_000,
        "context extension": 119_000,
        "post-training": 5_000,
        "total": 2_788_000,
    },
    "v2_236b": {"pre-training at the steady rate": 1_399_680},
}
"""GPU-hours that the model's makers state (arXiv:2412.19437 Table 1; arXiv:2405.04434 section 3.2.3)."""

PUBLISHED_PHASES = {"1F": 1.13, "1B": 1.99, "1W": 0.48, "1F1B": 13.95, "bubble": 2.06, "optimizer": 0.29}
"""Seconds of one step of V3 (arXiv:2505.09343 Table 4); they sum to 19.90, the step is printed as 19.926."""
PUBLISHED_STEP = 19.926
PUBLISHED_PHASES_OF = ("v3_671b", "2,048 H800")


@dataclass(frozen=True, slots=True)
class Swing:
    """What an unknown does: metered GPU-hours with it at its P10 and its P90, all else at the median."""

    name: str
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Extrapolation:
    plan: Plan
    run: RunEvidence
    price: Price
    extras: Extras
    tiers: list[Tier]
    steps: dict[str, StepTime]
    """Central step of each layout, where the layer profile applies."""
    shares: dict[str, float]
    """Of the middle layout's GPU-seconds."""
    memory: list[dict[str, float]]
    """Bytes on each rank, of the middle layout."""
    tornado: list[Swing]
    """Widest first."""
    claims: list[Claim]

    @property
    def best(self) -> Tier | None:
        """The tier that the run's lines are taken from: the layer profile, else published throughput."""
        return next((tier for tier in reversed(self.tiers) if tier.run is not None), None)

    @property
    def carried_over(self) -> float | None:
        """GPU-hours at this run's own MFU on the target's GPUs; an FP8 run's is a share of the FP8 peak."""
        gpu = self.plan.cluster.gpu
        tflops = gpu.fp8 if self.run.of_fp8_peak else gpu.bf16
        if self.run.mfu is None or tflops is None:
            return None
        return carried_over_hours(self.plan, self.run.mfu, tflops * 1e12)


def extrapolate(
    plan: Plan,
    run: RunEvidence,
    profile: LayerProfile,
    profile_shape: Shape,
    v3: ModelConfig,
    price: Price,
    extras: Extras,
) -> Extrapolation:
    """All tiers for a plan. Raises ValueError where the plan and its schedule do not fit."""
    priors = run_priors()
    draws, middle = sample(priors, N_DRAWS), central(priors)
    layers = layer_tier(plan, profile, profile_shape, draws)
    published = published_tier(plan, draws)
    steps: dict[str, StepTime] = {}
    shares: dict[str, float] = {}
    memory: list[dict[str, float]] = []
    if layers.run is not None:
        costs = Costs(plan, profile, profile_shape, middle)
        steps = {layout: step_time(costs, layout) for layout in LAYOUTS}
        shares = step_shares(costs, steps[MIDDLE_LAYOUT])
        memory = rank_memory(plan, steps[MIDDLE_LAYOUT].stages, layer_activation_bytes(plan))
    return Extrapolation(
        plan=plan,
        run=run,
        price=price,
        extras=extras,
        tiers=[prior_tier(plan), published, layers],
        steps=steps,
        shares=shares,
        memory=memory,
        tornado=_tornado(plan, profile, profile_shape, priors) if layers.run is not None else [],
        claims=_claims(plan, layers, v3, shares),
    )


def v3_claims(plan: Plan, profile: LayerProfile, profile_shape: Shape, v3: ModelConfig) -> list[Claim]:
    """The claims about V3 alone, by the plan of its own run."""
    priors = run_priors()
    middle = Costs(plan, profile, profile_shape, central(priors))
    shares = step_shares(middle, step_time(middle, MIDDLE_LAYOUT))
    return _claims(plan, layer_tier(plan, profile, profile_shape, sample(priors, N_DRAWS)), v3, shares)


def carried_over_hours(plan: Plan, mfu: float, peak: float) -> float:
    """GPU-hours of pre-training at an MFU (causal, MTP in) of a GPU's peak in FLOP/s."""
    flops = plan.tokens * flops_per_token(plan.shape, plan.sequence_length, mtp=True)
    return flops / (mfu * peak) / 3600


def _tornado(
    plan: Plan, profile: LayerProfile, profile_shape: Shape, priors: dict[str, Triangular]
) -> list[Swing]:
    """Metered hours with each unknown at its ends; the layout, of three cases, at its least and most."""
    names, draws = one_at_a_time(priors)
    middle = central(priors)
    hours = _metered(Costs(plan, profile, profile_shape, draws))
    base = float(_metered(Costs(plan, profile, profile_shape, middle))[0])
    swings = []
    for index, name in enumerate(names):
        ends = [float(value) for value in hours[2 * index : 2 * index + 2]]
        cases = [*ends, base] if name == LAYOUT else ends
        swings.append(Swing(name, min(cases), max(cases)))
    return sorted(swings, key=lambda swing: swing.low - swing.high)


def _metered(costs: Costs) -> NDArray[np.float64]:
    """Without the ramp, which is the same for all draws."""
    steady = steady_hours(costs.plan, step_seconds(costs))
    return run_hours(costs.plan, steady, costs.draws, 0.0).metered


def _claims(plan: Plan, layers: Tier, v3: ModelConfig, shares: dict[str, float]) -> list[Claim]:
    """The table is about V3: it needs V3's own lines."""
    if plan.model != "v3_671b" or layers.run is None or not plan.later:
        return []
    hours = {name: float(np.median(values)) for name, values in layers.run.lines.items()}
    return popular_claims(v3, hours, plan.later, shares["bubble"])
