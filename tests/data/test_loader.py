import itertools
import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from deepseek_mini.data.loader import Loader
from deepseek_mini.data.packing import Batch, Split

SPLIT = Split(np.arange(1000, dtype=np.uint16) % 50, eos_id=0, sequence_length=8, seed=4)
TIMEOUT = 10


def endless(start: int = 0, size: int = 3) -> Iterator[tuple[int, int]]:
    return ((start + step * size, size) for step in itertools.count())


def test_batches_come_in_the_order_of_the_plan() -> None:
    plan = [(0, 2), (2, 5), (7, 1)]
    with Loader(SPLIT, iter(plan)) as loader:
        batches = list(loader)
        assert list(loader) == []
    assert [len(batch.tokens_BS) for batch in batches] == [2, 5, 1]
    for batch, (start, size) in zip(batches, plan, strict=True):
        assert torch.equal(batch.tokens_BS, SPLIT.batch(start, size).tokens_BS)


def test_a_plan_that_starts_later_resumes_exactly() -> None:
    with Loader(SPLIT, endless()) as whole, Loader(SPLIT, endless(start=6)) as resumed:
        for batch, again in zip(itertools.islice(whole, 2, 6), resumed, strict=False):
            assert torch.equal(batch.tokens_BS, again.tokens_BS)


class Watched:
    """A split that counts the batches made and can be stopped."""

    def __init__(self, expected: int) -> None:
        self.made = 0
        self.expected = expected
        self.reached = threading.Event()

    def batch(self, start: int, size: int) -> Batch:
        self.made += 1
        if self.made == self.expected:
            self.reached.set()
        return SPLIT.batch(start, size)


def test_batches_are_made_ahead_while_the_consumer_computes_but_no_further_than_depth() -> None:
    watched = Watched(expected=4)
    with Loader(watched, endless(), depth=3) as loader:  # type: ignore[arg-type]
        next(loader)
        assert watched.reached.wait(TIMEOUT)
        assert not threading.Event().wait(0.05)
        assert watched.made == 4


def test_a_fault_of_the_data_is_raised_where_the_batch_is_asked_for() -> None:
    def broken_plan() -> Iterator[tuple[int, int]]:
        yield 0, 1
        raise OSError("disk gone")

    with Loader(SPLIT, broken_plan()) as loader:
        next(loader)
        with pytest.raises(OSError, match="disk gone"):
            next(loader)
        with pytest.raises(StopIteration):
            next(loader)


def test_a_fault_while_making_a_batch_is_raised_too() -> None:
    empty = Split(np.zeros(1, np.uint16), eos_id=0, sequence_length=8, seed=4)
    with Loader(empty, iter([(0, 1)])) as loader, pytest.raises(ZeroDivisionError):
        next(loader)


@pytest.mark.parametrize("taken", [0, 1, 5])
def test_close_ends_the_thread_of_an_endless_plan(taken: int) -> None:
    before = threading.active_count()
    loader = Loader(SPLIT, endless())
    for _ in range(taken):
        next(loader)
    loader.close()
    loader.close()
    assert threading.active_count() == before
    with pytest.raises(StopIteration):
        next(loader)
