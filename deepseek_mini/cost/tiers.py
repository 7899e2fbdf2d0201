"""Three ways to tell a run's GPU-hours, each with what it stands on."""

from dataclasses import dataclass

from deepseek_mini.cost.breakdown import layer_activation_bytes, rank_memory
from deepseek_mini.cost.devices import find_gpu
from deepseek_mini.cost.draws import Draws, band, central, run_priors
from deepseek_mini.cost.layer_profile import LayerProfile
from deepseek_mini.cost.layout import LAYOUTS, MIDDLE_LAYOUT, stages
from deepseek_mini.cost.plan import Plan
from deepseek_mini.cost.predict import predict
from deepseek_mini.cost.published import find_evidence, steady_from
from deepseek_mini.cost.run_model import RunHours, ramp_share, run_hours, steady_hours
from deepseek_mini.cost.runs import Run, parse_runs
from deepseek_mini.cost.shape import Shape
from deepseek_mini.cost.step import Costs, step_seconds
from deepseek_mini.cost.tables import number, read_table

DEFAULT_YEAR = 2026
"""Of a run that nobody has made yet."""


@dataclass(frozen=True, slots=True)
class Tier:
    """One way to tell the GPU-hours of pre-training."""

    name: str
    title: str
    hours: dict[str, float] | None
    """P10, P50 and P90; None where it has nothing to stand on."""
    evidence: str
    """What it stands on, or why there is nothing."""
    run: RunHours | None = None
    """The lines of the whole run, where the tier gives a steady rate."""


def prior_tier(plan: Plan) -> Tier:
    title = "prior: published runs only"
    known = {row["model"]: row for row in read_table("plans")}.get(plan.model, {})
    run = Run(
        model=known.get("published_as", plan.model),
        org=known.get("org", "nobody yet"),
        year=int(number(known, "year") or DEFAULT_YEAR),
        shape=plan.shape,
        sequence_length=plan.sequence_length,
        tokens=plan.tokens,
        gpu=plan.cluster.gpu.name,
        full_recompute=False,
    )
    runs, _ = parse_runs(read_table("published_runs"))
    others = [other for other in runs if other.org != run.org]
    prediction = predict(run, runs)
    hours = {"p10": prediction.low, "p50": prediction.hours, "p90": prediction.high}
    evidence = (
        f"{len(others)} runs of {len({other.org for other in others})} organisations"
        + (f", none of {run.org}'s" if known else "")
        + "; hours as they were reported, metered for most; conformal 80% band"
    )
    return Tier("prior", title, hours, evidence)


def published_tier(plan: Plan, draws: Draws) -> Tier:
    title = "published throughput of the same model"
    evidence = find_evidence(plan)
    if evidence is None:
        reason = f"no throughput of {plan.model} on such a GPU is published by others than its makers"
        return Tier("published_throughput", title, None, reason)
    hours = steady_from(evidence, plan, draws["imbalance"])
    note = (
        ""
        if evidence.same_gpu
        else f"; {plan.cluster.gpu.name} has the same peaks, but other links or memory"
    )
    return Tier(
        "published_throughput", title, band(hours), evidence.text + note, run_hours(plan, hours, draws, 0.0)
    )


def layer_tier(plan: Plan, profile: LayerProfile, profile_shape: Shape, draws: Draws) -> Tier:
    title = "layer profile and simulated schedule"
    reason = layer_profile_applies(plan, profile)
    if reason is None and not plan.shape.n_moe_layers:
        reason = "the profile is of an MoE layer, the target is dense"
    if reason is not None:
        return Tier("layer_profile", title, None, reason)
    try:
        hours = steady_hours(plan, step_seconds(Costs(plan, profile, profile_shape, draws)))
    except ValueError as error:
        raise ValueError(f"{error}; change --batch, --pp or --schedule") from error
    middle = Costs(plan, profile, profile_shape, central(run_priors()))
    scaled = (
        ""
        if plan.shape == profile_shape
        else "; another shape than the profile's: scaled by FLOPs, not measured"
    )
    evidence = (
        f"{profile.label}; {plan.schedule}, PP{plan.pp}, EP{plan.ep}, layouts {', '.join(LAYOUTS)}; "
        f"{profile.precision}{scaled}{overfull(plan)}"
    )
    run = run_hours(plan, hours, draws, ramp_share(middle, MIDDLE_LAYOUT))
    return Tier("layer_profile", title, band(hours), evidence, run)


def overfull(plan: Plan) -> str:
    """What to say where a rank needs more memory than its GPU has; nothing if all fit."""
    layout = stages(plan.shape, plan.pp, MIDDLE_LAYOUT)
    memory = rank_memory(plan, layout, layer_activation_bytes(plan))
    needed, there = max(sum(rank.values()) for rank in memory) / 1e9, plan.cluster.gpu.memory_gb
    if there is None or needed <= there:
        return ""
    return f"; DOES NOT FIT: a rank needs about {needed:,.0f} GB of {there:g}; raise --pp or --ep"


def layer_profile_applies(plan: Plan, profile: LayerProfile) -> str | None:
    """Why the profile says nothing about the plan's GPUs; None if it does."""
    wanted = plan.cluster.gpu
    try:
        measured = find_gpu(profile.device)
    except ValueError:
        return (
            f"{profile.name}: {profile.label}; {profile.device} is none of the GPUs of "
            f"deepseek_mini/cost/data/devices.csv, and says nothing about {wanted.name}"
        )
    if (measured.bf16, measured.fp8, measured.memory_gbps) == (wanted.bf16, wanted.fp8, wanted.memory_gbps):
        return None
    return (
        f"{profile.name} was taken on {measured.name}; {wanted.name} has other peaks or memory. Measure a "
        "layer there with scripts/benchmark.py layers, and give the file as --profile"
    )
