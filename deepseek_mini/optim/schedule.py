"""Everything that changes over a run: learning rate, batch size, MTP weight and bias rate of each step.

A schedule is a list of phases over the fraction of the run's tokens (V3 section 4.2 gives all its
boundaries in tokens). The plan of a whole run follows from the config alone, so that a resumed run
continues exactly where the interrupted one stood.
"""

import math
from typing import NamedTuple

from deepseek_mini.config import Config, Phase, ScheduleConfig, Shape

V3_BIAS_UPDATE_RATE = 0.001
"""gamma of V3, for a run of some 240,000 steps."""

MOST_STEPS = 1_000_000
"""Of a run, whose plan is held whole in memory."""


class StepPlan(NamedTuple):
    """What one optimizer step does."""

    step: int
    """From 1."""
    first_sequence: int
    batch_size: int
    """Sequences of this step."""
    tokens_before: int
    """Tokens of all earlier steps."""
    lr: float
    mtp_weight: float
    bias_update_rate: float


def multiplier(phases: list[Phase], fraction: float) -> float:
    """Value of a schedule at a fraction of the run; the last value holds beyond the end."""
    begin, previous = 0.0, 1.0
    for phase in phases:
        if fraction < phase.until or phase is phases[-1]:
            return _within(phase, previous, min((fraction - begin) / (phase.until - begin), 1.0))
        begin, previous = phase.until, phase.value
    raise AssertionError("a schedule has at least one phase")


def _within(phase: Phase, previous: float, progress: float) -> float:
    start = previous if phase.start is None else phase.start
    if phase.shape is Shape.linear:
        return start + (phase.value - start) * progress
    if phase.shape is Shape.cosine:
        return phase.value + (start - phase.value) * 0.5 * (1 + math.cos(math.pi * progress))
    return phase.value


def total_tokens(config: Config) -> int:
    """Tokens of the run: `trainer.max_tokens`, or what `trainer.max_steps` steps of the ramped batch hold."""
    if config.trainer.max_tokens is not None:
        return config.trainer.max_tokens
    assert config.trainer.max_steps is not None
    full_batch = config.data.batch_size * config.data.sequence_length
    return max(round(config.trainer.max_steps * full_batch / _ramp_steps(config.schedule)), 1)


def check_length(config: Config) -> None:
    """Raise ValueError for a run of more steps than can be planned."""
    steps, fix = config.trainer.max_steps, f"lower trainer.max_steps={config.trainer.max_steps}"
    if steps is None:
        full_batch = config.data.batch_size * config.data.sequence_length
        steps = round(total_tokens(config) / full_batch * _ramp_steps(config.schedule))
        fix = f"lower trainer.max_tokens={config.trainer.max_tokens} or raise data.batch_size"
    if steps > MOST_STEPS:
        raise ValueError(f"the run would take {steps:,} steps, and can have {MOST_STEPS:,}; {fix}")


def _ramp_steps(schedule: ScheduleConfig) -> float:
    """Steps of a run in units of those that it would have at the full batch.

    A step at fraction f takes m(f) of the batch, so this is the mean of 1 / m(f).
    """
    points = 1000
    fractions = ((i + 0.5) / points for i in range(points))
    return sum(1 / multiplier(schedule.batch_size, f) for f in fractions) / points


def plan_run(config: Config) -> list[StepPlan]:
    """Every step of the run, in order."""
    total, length = total_tokens(config), config.data.sequence_length
    schedule, plans, sequences = config.schedule, [], 0
    while not _is_complete(config, len(plans), sequences * length):
        fraction = sequences * length / total
        batch_size = max(round(config.data.batch_size * multiplier(schedule.batch_size, fraction)), 1)
        step, tokens_after = len(plans) + 1, (sequences + batch_size) * length
        warmup = _warmup(schedule, step, tokens_after / total)
        lr = multiplier(schedule.lr, fraction)
        plans.append(
            StepPlan(
                step=step,
                first_sequence=sequences,
                batch_size=batch_size,
                tokens_before=sequences * length,
                lr=config.optimizer.lr * warmup * lr,
                mtp_weight=config.model.mtp.loss_weight * multiplier(schedule.mtp_weight, fraction),
                bias_update_rate=_bias_rate(config, total, lr) * multiplier(schedule.bias_rate, fraction),
            )
        )
        sequences += batch_size
    return plans


def _is_complete(config: Config, steps: int, tokens: int) -> bool:
    if config.trainer.max_steps is not None:
        return steps >= config.trainer.max_steps
    assert config.trainer.max_tokens is not None
    return tokens >= config.trainer.max_tokens


def _warmup(schedule: ScheduleConfig, step: int, fraction_after: float) -> float:
    by_steps = step / max(schedule.min_warmup_steps, 1)
    by_tokens = fraction_after / schedule.warmup if schedule.warmup else 1.0
    return min(1.0, by_steps, by_tokens)


def scaled_bias_rate(steps: int) -> float:
    """gamma at the full learning rate of a run of so many steps, where the config leaves it open.

    V3's 0.001 lets a bias travel 240 over its run; a run of a few hundred steps would end before the
    first starving expert is reached. A bias needs to travel a few times the scores' range of 1: we let it
    go 4 in all, and never faster than 0.02 a step nor slower than V3.
    """
    return min(max(4 / steps, V3_BIAS_UPDATE_RATE), 0.02)


def _bias_rate(config: Config, total: int, lr_multiplier: float) -> float:
    """gamma before its schedule. Left open, what it has above V3's falls with the learning rate.

    Large steps follow a router that learns fast; once it slows down, they only shake the loads.
    """
    if config.model.moe.bias_update_rate is not None:
        return config.model.moe.bias_update_rate
    peak = scaled_bias_rate(max(total // (config.data.batch_size * config.data.sequence_length), 1))
    return V3_BIAS_UPDATE_RATE + (peak - V3_BIAS_UPDATE_RATE) * lr_multiplier
