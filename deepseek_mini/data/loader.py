"""Prefetching: batches are made on a thread while the model computes on those before."""

import threading
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Self

from deepseek_mini.data.packing import Batch, Split


class Loader:
    """Iterates over `split.batch(start, size)` for each (start, size) of `plan`, up to `depth` ahead.

    The plan says all there is to say about position, so a resumed run passes a plan that starts later.
    What goes wrong on the thread is raised where the batch is asked for. Use as a context manager, or call
    `close`.
    """

    def __init__(self, split: Split, plan: Iterator[tuple[int, int]], depth: int = 2) -> None:
        self._split = split
        self._plan = plan
        self._ready: SimpleQueue[Batch | BaseException] = SimpleQueue()
        self._free = threading.Semaphore(depth)
        self._done = False
        self._thread = threading.Thread(target=self._fill, name="data loader", daemon=True)
        self._thread.start()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        if self._done:
            raise StopIteration
        item = self._ready.get()
        if isinstance(item, BaseException):
            self._done = True
            raise item
        self._free.release()
        return item

    def close(self) -> None:
        """Stop the thread and wait for it."""
        self._done = True
        self._free.release()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _fill(self) -> None:
        try:
            for start, size in self._plan:
                self._free.acquire()
                if self._done:
                    return
                self._ready.put(self._split.batch(start, size))
            self._ready.put(StopIteration())
        except BaseException as error:
            self._ready.put(error)
