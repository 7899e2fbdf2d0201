"""Operations of a pipeline, and the checks that a schedule passes before it is timed."""

import functools
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    forward = "F"
    backward = "B"
    """Gradients of inputs and weights together."""
    input_grad = "I"
    weight_grad = "W"


@dataclass(frozen=True, slots=True)
class Op:
    """One micro-batch through one stage, in one direction."""

    kind: Kind
    stage: int
    micro_batch: int


Step = tuple[Op, ...]
"""What a rank does at once: one operation, or a forward and a backward that overlap."""


@dataclass(frozen=True, slots=True)
class Placed:
    """A step on its rank, with what must be done before it."""

    rank: int
    step: Step
    needs: tuple[Op, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Schedule:
    """The order of every rank. Stage 0 is where micro-batches enter; a rank may hold several stages.

    A schedule is not changed once it is built: its playing order is worked out once.
    """

    name: str
    n_stages: int
    n_micro_batches: int
    ranks: list[list[Step]]

    def stages_of(self, rank: int) -> list[int]:
        return sorted({op.stage for step in self.ranks[rank] for op in step})


def needs(op: Op, n_stages: int, whole_backward: set[tuple[int, int]]) -> Iterator[Op]:
    """What must be done before `op`: the neighbour's output and, going back, the stage's own forward.

    `whole_backward` holds the (stage, micro-batch) whose backward is not split.
    """
    stage, micro = op.stage, op.micro_batch
    if op.kind is Kind.forward:
        if stage:
            yield Op(Kind.forward, stage - 1, micro)
    elif op.kind is Kind.weight_grad:
        yield Op(Kind.input_grad, stage, micro)
    else:
        yield Op(Kind.forward, stage, micro)
        if stage + 1 < n_stages:
            whole = (stage + 1, micro) in whole_backward
            yield Op(Kind.backward if whole else Kind.input_grad, stage + 1, micro)


@functools.lru_cache(maxsize=16)
def playing_order(schedule: Schedule) -> list[Placed]:
    """All steps in an order in which every one finds done what it needs; ranks keep their own order.

    Raises ValueError naming the first violation: an operation that is missing, done twice or on two ranks,
    one that overlaps with what it needs, or ranks that wait for each other for ever.
    """
    whole = _check_operations(schedule)
    done: set[Op] = set()
    order: list[Placed] = []
    waiting = [deque(steps) for steps in schedule.ranks]
    while any(waiting):
        before = len(order)
        for rank, steps in enumerate(waiting):
            while steps:
                required = tuple(need for op in steps[0] for need in needs(op, schedule.n_stages, whole))
                if not done.issuperset(required):
                    break
                done.update(steps[0])
                order.append(Placed(rank, steps.popleft(), required))
        if len(order) == before:
            stuck = next(steps[0] for steps in waiting if steps)
            raise ValueError(f"{schedule.name}: no rank can go on; one waits at {_text(stuck)}")
    return order


def _check_operations(schedule: Schedule) -> set[tuple[int, int]]:
    """Each stage does each micro-batch once, on one rank; returns where the backward is whole."""
    seen: dict[Op, int] = {}
    for rank, steps in enumerate(schedule.ranks):
        for step in steps:
            for op in step:
                if op in seen:
                    raise ValueError(
                        f"{schedule.name}: {_text((op,))} is done twice, on ranks {seen[op]} and {rank}"
                    )
                seen[op] = rank
    whole: set[tuple[int, int]] = set()
    for stage in range(schedule.n_stages):
        for micro in range(schedule.n_micro_batches):
            kinds = {kind: seen[op] for kind in Kind if (op := Op(kind, stage, micro)) in seen}
            if set(kinds) not in ({"F", "B"}, {"F", "I", "W"}):
                what = "".join(sorted(kinds)) or "nothing"
                raise ValueError(f"{schedule.name}: stage {stage} does {what} of micro-batch {micro}")
            if len(set(kinds.values())) > 1:
                raise ValueError(f"{schedule.name}: micro-batch {micro} meets stage {stage} on several ranks")
            if Kind.backward in kinds:
                whole.add((stage, micro))
    return whole


def _text(step: Step) -> str:
    return " + ".join(f"{op.kind}(stage {op.stage}, micro-batch {op.micro_batch})" for op in step)
