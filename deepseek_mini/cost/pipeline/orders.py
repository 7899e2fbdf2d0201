"""Orders in which every rank goes through its stages in one direction: 1F1B, interleaved 1F1B, ZB1P."""

import functools
from collections.abc import Callable

from deepseek_mini.cost.pipeline.dualpipe import dualpipe, dualpipe_v
from deepseek_mini.cost.pipeline.schedule import Kind, Op, Schedule, Step

F, B, I, W = Kind.forward, Kind.backward, Kind.input_grad, Kind.weight_grad  # noqa: E741


def one_f_one_b(n_stages: int, n_micro_batches: int) -> Schedule:
    """PipeDream-flush: as many forwards as ranks below, then one forward and one backward in turn."""
    ranks: list[list[Step]] = []
    for rank in range(n_stages):
        warmup = min(n_stages - 1 - rank, n_micro_batches)
        steps: list[Step] = [(Op(F, rank, i),) for i in range(warmup)]
        for i in range(n_micro_batches):
            if i + warmup < n_micro_batches:
                steps.append((Op(F, rank, i + warmup),))
            steps.append((Op(B, rank, i),))
        ranks.append(steps)
    return Schedule("1f1b", n_stages, n_micro_batches, ranks)


def interleaved(n_stages: int, n_micro_batches: int, chunks: int = 2) -> Schedule:
    """Interleaved 1F1B (arXiv:2104.04473, section 2.2): rank r holds stages r, r + p, ... of p ranks.

    Raises ValueError if the stages do not divide by `chunks`, or the micro-batches by the ranks.
    """
    if n_stages % chunks:
        raise ValueError(f"interleaved: {n_stages} stages do not divide into {chunks} per rank")
    n_ranks = n_stages // chunks
    if n_micro_batches % n_ranks:
        raise ValueError(f"interleaved: {n_micro_batches} micro-batches do not divide by {n_ranks} ranks")
    total = n_micro_batches * chunks

    def op(kind: Kind, k: int, rank: int) -> Step:
        chunk = k % (n_ranks * chunks) // n_ranks
        chunk = chunk if kind is F else chunks - 1 - chunk
        micro = k // (n_ranks * chunks) * n_ranks + k % n_ranks
        return (Op(kind, chunk * n_ranks + rank, micro),)

    ranks: list[list[Step]] = []
    for rank in range(n_ranks):
        warmup = min(2 * (n_ranks - rank - 1) + (chunks - 1) * n_ranks, total)
        steps = [op(F, k, rank) for k in range(warmup)]
        for k in range(total):
            if k + warmup < total:
                steps.append(op(F, k + warmup, rank))
            steps.append(op(B, k, rank))
        ranks.append(steps)
    return Schedule("interleaved", n_stages, n_micro_batches, ranks)


def zb1p(n_stages: int, n_micro_batches: int) -> Schedule:
    """Zero bubble with the memory of 1F1B (ZB-H1 of arXiv:2401.10241, section 2).

    As 1F1B with the backward split: input gradients go out at once, and rank r is r weight gradients late,
    which it does at the end, while the ranks above are still busy.
    """
    ranks: list[list[Step]] = []
    for rank in range(n_stages):
        warmup = min(n_stages - 1 - rank, n_micro_batches)
        steps: list[Step] = [(Op(F, rank, i),) for i in range(warmup)]
        for i in range(n_micro_batches):
            if i + warmup < n_micro_batches:
                steps.append((Op(F, rank, i + warmup),))
            steps.append((Op(I, rank, i),))
            if i >= rank:
                steps.append((Op(W, rank, i - rank),))
        late = min(rank, n_micro_batches)
        steps += [(Op(W, rank, i),) for i in range(n_micro_batches - late, n_micro_batches)]
        ranks.append(steps)
    return Schedule("zb1p", n_stages, n_micro_batches, ranks)


SCHEDULES: dict[str, Callable[[int, int], Schedule]] = {
    "1f1b": one_f_one_b,
    "interleaved": functools.partial(interleaved, chunks=2),
    "zb1p": zb1p,
    "dualpipe": dualpipe,
    "dualpipe_v": dualpipe_v,
}


@functools.lru_cache(maxsize=16)
def build_schedule(name: str, n_stages: int, n_micro_batches: int) -> Schedule:
    """The schedule called `name`. Raises ValueError with the names there are, or what it needs."""
    if name not in SCHEDULES:
        raise ValueError(f"unknown schedule {name!r}; choose one of {', '.join(SCHEDULES)}")
    if n_stages < 1 or n_micro_batches < 1:
        raise ValueError(f"{name}: needs a stage and a micro-batch, got {n_stages} and {n_micro_batches}")
    return SCHEDULES[name](n_stages, n_micro_batches)
