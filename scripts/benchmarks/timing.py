"""Seconds of work that takes turns, so that whatever else the machine does falls on all alike."""

import statistics
import time
from collections.abc import Callable, Mapping

import torch

Work = Callable[[], object]


def seconds_of(work: Work, device: torch.device) -> float:
    """Seconds until `work` is done on the device."""
    synchronize(device)
    begin = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - begin


def take_turns(
    title: str, works: Mapping[str, Work], rounds: int, device: torch.device, say: Callable[[str], None]
) -> dict[str, list[float]]:
    """Each work once as a warm-up, then once in every round; `title` is for the progress lines."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 1):
        say(f"{title}: round {number} of {rounds}" + (" (warm-up)" if number == 0 else ""))
        for name, work in works.items():
            taken = seconds_of(work, device)
            seconds[name] += [taken] if number else []
    return seconds


def medians(
    title: str, works: Mapping[str, Work], rounds: int, device: torch.device, say: Callable[[str], None]
) -> dict[str, float]:
    """Median seconds of each work, by turns."""
    seconds = take_turns(title, works, rounds, device, say)
    return {name: statistics.median(values) for name, values in seconds.items()}


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
