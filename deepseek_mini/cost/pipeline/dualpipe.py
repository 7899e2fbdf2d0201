"""DualPipe and its V-shaped half (arXiv:2412.19437, section 3.2.1; github.com/deepseek-ai/DualPipe).

Every rank holds two stages, one of each half of the model. DualPipe feeds micro-batches from both ends, so
that each rank meets two streams, and keeps two copies of the model. DualPipeV folds the model at its
middle instead: one stream goes down the ranks and comes back up. In both, a rank calls the stream that enters
nearest to it 0 and the other 1, and its order is the same in eight parts.
"""

from collections import deque
from collections.abc import Callable

from deepseek_mini.cost.pipeline.schedule import Kind, Op, Schedule, Step

StageOf = Callable[[int], int]
"""From a rank's stream (0 or 1) to the stage it meets it with."""


class _Rank:
    """Writes one rank's steps, counting each stream's micro-batches and the weight gradients it owes."""

    def __init__(self, stage_of: StageOf, first_micro_batch: Callable[[int], int]) -> None:
        self.steps: list[Step] = []
        self._stage_of, self._first = stage_of, first_micro_batch
        self._forwards, self._backwards = [0, 0], [0, 0]
        self._owed: deque[Op] = deque()

    def forward(self, stream: int) -> None:
        self.steps.append((self._forward(stream),))

    def backward(self, stream: int, *, split: bool = False) -> None:
        """A whole backward, or only its input gradient."""
        self.steps.append((self._backward(stream, Kind.input_grad if split else Kind.backward),))

    def weights(self) -> None:
        """The weight gradient that is owed for longest."""
        self.steps.append((self._owed.popleft(),))

    def overlapped(self, forward: int, backward: int) -> None:
        self.steps.append((self._forward(forward), self._backward(backward, Kind.backward)))

    def _forward(self, stream: int) -> Op:
        micro = self._first(stream) + self._forwards[stream]
        self._forwards[stream] += 1
        return Op(Kind.forward, self._stage_of(stream), micro)

    def _backward(self, stream: int, kind: Kind) -> Op:
        micro, stage = self._first(stream) + self._backwards[stream], self._stage_of(stream)
        self._backwards[stream] += 1
        if kind is Kind.input_grad:
            self._owed.append(Op(Kind.weight_grad, stage, micro))
        return Op(kind, stage, micro)


def dualpipe(n_stages: int, n_micro_batches: int) -> Schedule:
    """Bidirectional: as many ranks as stages, half of the micro-batches from either end.

    Raises ValueError unless both numbers are even and there are at least two micro-batches per rank.
    """
    if n_stages % 2 or n_micro_batches % 2:
        raise ValueError(f"dualpipe: {n_stages} stages and {n_micro_batches} micro-batches must both be even")
    if n_micro_batches < 2 * n_stages:
        raise ValueError(
            f"dualpipe: {n_stages} stages need at least {2 * n_stages} micro-batches, got {n_micro_batches}"
        )
    half, per_stream = n_stages // 2, n_micro_batches // 2
    ranks: list[list[Step]] = []
    for rank in range(n_stages):
        upper = rank >= half
        writer = _Rank(
            stage_of=lambda stream, r=rank, u=upper: r if (stream == 0) != u else n_stages - 1 - r,
            first_micro_batch=lambda stream, u=upper: 0 if (stream == 0) != u else per_stream,
        )
        _write(writer, min(rank, n_stages - 1 - rank), half, per_stream)
        ranks.append(writer.steps)
    return Schedule("dualpipe", n_stages, n_micro_batches, ranks)


def dualpipe_v(n_stages: int, n_micro_batches: int) -> Schedule:
    """Folded: rank r of n_stages / 2 holds stages r and n_stages - 1 - r.

    Raises ValueError unless the stages are even and there are as many micro-batches as stages.
    """
    if n_stages % 2:
        raise ValueError(f"dualpipe_v: {n_stages} stages must be even")
    if n_micro_batches < n_stages:
        raise ValueError(
            f"dualpipe_v: {n_stages} stages need at least {n_stages} micro-batches, got {n_micro_batches}"
        )
    ranks: list[list[Step]] = []
    for rank in range(n_stages // 2):
        writer = _Rank(
            stage_of=lambda stream, r=rank: r if stream == 0 else n_stages - 1 - r,
            first_micro_batch=lambda stream: 0,
        )
        _write(writer, rank, n_stages // 2, n_micro_batches)
        ranks.append(writer.steps)
    return Schedule("dualpipe_v", n_stages, n_micro_batches, ranks)


def _write(rank: _Rank, depth: int, n_depths: int, per_stream: int) -> None:
    """The eight parts, for the rank at `depth` from where its stream 0 enters (0) to the middle."""
    below = n_depths - 1 - depth
    for _ in range(2 * below):
        rank.forward(0)
    for _ in range(depth + 1):
        rank.forward(0)
        rank.forward(1)
    for _ in range(below):
        rank.backward(1, split=True)
        rank.weights()
        rank.forward(1)
    _write_main_part(rank, is_middle=below == 0, times=per_stream - 2 * n_depths + depth + 1)
    for _ in range(below):
        rank.backward(1)
        rank.overlapped(forward=1, backward=0)
    n_split = depth + 1
    for i in range(2 * n_split):
        rank.backward(1 - i % 2, split=i >= n_split)
    for _ in range(below):
        rank.weights()
        rank.backward(0, split=True)
    for _ in range(n_split):
        rank.weights()


def _write_main_part(rank: _Rank, *, is_middle: bool, times: int) -> None:
    """Forward and backward of opposite streams overlap; the middle ranks do not overlap their first two."""
    for i in range(times):
        if i == 0 and is_middle:
            rank.forward(0)
            rank.backward(1)
        else:
            rank.overlapped(forward=0, backward=1)
        rank.overlapped(forward=1, backward=0)
