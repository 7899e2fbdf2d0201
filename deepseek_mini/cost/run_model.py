"""From a step's seconds to the whole run's GPU-hours, line by line.

Steady state is what DeepSeek's 2,664K is: 180K hours per trillion tokens, times 14.8. Everything else is
a line of its own: the batch ramp, context extension, post-training, and what restarts and waiting cost.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from deepseek_mini.cost.draws import Draws
from deepseek_mini.cost.flops import flops_per_token
from deepseek_mini.cost.plan import Plan
from deepseek_mini.cost.step import Costs, step_time

Hours = NDArray[np.float64]

STEADY = "pre-training at the steady rate"
RAMP = "batch ramp"
LOST = "restarts, waiting, checkpoints"
RAMP_POINTS = 5
SMALL_BATCH = {"dualpipe": "zb1p", "dualpipe_v": "interleaved"}
"""Schedule for too few micro-batches, on the same ranks."""


@dataclass(frozen=True, slots=True)
class RunHours:
    """GPU-hours by line, an array of draws each."""

    lines: dict[str, Hours]

    @property
    def steady(self) -> Hours:
        return self.lines[STEADY]

    @property
    def metered(self) -> Hours:
        return np.sum(list(self.lines.values()), axis=0)


def steady_hours(plan: Plan, seconds: Hours) -> Hours:
    """GPU-hours of pre-training if every step took `seconds`."""
    steps = plan.tokens / (plan.batch_size * plan.sequence_length)
    return steps * seconds * plan.cluster.n_gpus / 3600


def run_hours(plan: Plan, steady: Hours, draws: Draws, ramp: float) -> RunHours:
    """All lines of a run from its steady pre-training hours.

    Later stages cost their FLOPs at pre-training's rate, over their own efficiency. `ramp` is the share that
    the batch ramp adds (`ramp_share`). Goodput divides the sum.
    """
    rate = steady / (plan.tokens * flops_per_token(plan.shape, plan.sequence_length))
    lines = {STEADY: steady, RAMP: steady * ramp}
    for stage in plan.later:
        flops = stage.tokens * flops_per_token(plan.shape, stage.sequence_length)
        lines[stage.name] = rate * flops / draws[stage.efficiency]
    lines[LOST] = np.sum(list(lines.values()), axis=0) * (1 / draws["goodput"] - 1)
    return RunHours(lines)


def ramp_share(costs: Costs, layout: str) -> float:
    """Hours that smaller batches add, over the steady hours, from single draws of `costs`.

    Fewer micro-batches share the same bubble and the same optimizer step. Where they are too few for
    DualPipe (V3 starts with 24, it needs 32), the schedule is ZB1P.
    """
    plan = costs.plan
    if not plan.ramp_tokens:
        return 0.0
    shares = np.linspace(plan.ramp_from, 1.0, RAMP_POINTS)
    seconds = [_seconds_per_micro_batch(costs, layout, float(share)) for share in shares]
    return (float(np.mean(seconds)) / seconds[-1] - 1) * plan.ramp_tokens / plan.tokens


def _seconds_per_micro_batch(costs: Costs, layout: str, share: float) -> float:
    """Of a step with `share` of the full batch, rounded to what the schedule can take."""
    plan = costs.plan
    wanted = plan.n_micro_batches * share
    least = {"dualpipe": 2 * plan.pp, "dualpipe_v": plan.pp}.get(plan.schedule, 1)
    if wanted < least:
        costs = replace(costs, plan=replace(plan, schedule=SMALL_BATCH[plan.schedule]))
    unit = {"dualpipe": 2, "interleaved": plan.n_ranks}.get(costs.plan.schedule, 1)
    n = max(1, round(wanted / unit)) * unit
    return float(step_time(costs, layout, n).seconds[0]) / n
