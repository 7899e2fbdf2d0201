"""Plays a schedule: when each step begins and ends, how long each rank idles, what it keeps in memory.

Durations may be arrays of draws; one pass then plays all of them, as the order is fixed.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deepseek_mini.cost.pipeline.schedule import Kind, Op, Schedule, Step, playing_order

Seconds = NDArray[np.float64]
"""One value per draw, or a single one."""

Stages = tuple[tuple[Kind, int], ...]
"""A step without its micro-batches: durations depend on kind and stage only."""


@dataclass(frozen=True, slots=True)
class Interval:
    step: Step
    begin: Seconds
    end: Seconds


@dataclass(frozen=True, slots=True)
class Timeline:
    schedule: Schedule
    ranks: list[list[Interval]]

    @property
    def seconds(self) -> Seconds:
        """From the first step of any rank to the last."""
        return np.maximum.reduce([intervals[-1].end for intervals in self.ranks])

    def busy(self, rank: int) -> Seconds:
        return np.sum([interval.end - interval.begin for interval in self.ranks[rank]], axis=0)

    def bubble(self, rank: int) -> Seconds:
        """Seconds in which the rank waits for others."""
        return self.seconds - self.busy(rank)

    def phases(self, rank: int) -> dict[str, Seconds]:
        """Seconds by what the rank does: 1F, 1B (whole or input gradient), 1W, 1F1B overlapped, bubble."""
        seconds: dict[str, Seconds] = defaultdict(lambda: np.zeros(1))
        for interval in self.ranks[rank]:
            seconds[_phase(interval.step)] = seconds[_phase(interval.step)] + interval.end - interval.begin
        return {**{name: seconds[name] for name in ("1F", "1B", "1W", "1F1B")}, "bubble": self.bubble(rank)}


def play(schedule: Schedule, duration: Callable[[Stages], Seconds], hop: Seconds | float = 0.0) -> Timeline:
    """Check the schedule, then time it: a step begins when its rank is free and what it needs has arrived.

    `hop` is the seconds in which a result reaches another rank, while neither of the two waits for it.
    Raises ValueError if the schedule violates a dependency.
    """
    durations: dict[Stages, Seconds] = {}
    finished: dict[Op, tuple[int, Seconds]] = {}
    free: list[Seconds] = [np.zeros(1)] * len(schedule.ranks)
    ranks: list[list[Interval]] = [[] for _ in schedule.ranks]
    for placed in playing_order(schedule):
        rank, step, begin = placed.rank, placed.step, free[placed.rank]
        for need in placed.needs:
            source, end = finished[need]
            begin = np.maximum(begin, end if source == rank else end + hop)
        stages = tuple((op.kind, op.stage) for op in step)
        if stages not in durations:
            durations[stages] = np.atleast_1d(duration(stages))
        free[rank] = begin + durations[stages]
        finished.update((op, (rank, free[rank])) for op in step)
        ranks[rank].append(Interval(step, begin, free[rank]))
    return Timeline(schedule, ranks)


def peak_activations(
    schedule: Schedule, rank: int, size: Callable[[int], float] = lambda stage: 1.0
) -> float:
    """Most that a rank keeps at once, from each forward to the end of its backward.

    `size` is what one micro-batch leaves on a stage; a weight gradient that is put off keeps all of it.
    """
    held = peak = 0.0
    for step in schedule.ranks[rank]:
        held += sum(size(op.stage) for op in step if op.kind is Kind.forward)
        peak = max(peak, held)
        held -= sum(size(op.stage) for op in step if op.kind in (Kind.backward, Kind.weight_grad))
    return peak


def _phase(step: Step) -> str:
    if len(step) == 2:
        return "1F1B"
    kinds = {Kind.forward: "1F", Kind.backward: "1B", Kind.input_grad: "1B", Kind.weight_grad: "1W"}
    return kinds[step[0].kind]
