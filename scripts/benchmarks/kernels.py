"""The FP8 kernels on a Hopper GPU, in every production configuration, against their floors and against peers.

Before a kernel is timed, its results are compared with the plain reference's on the same GPU; one that
differs is not timed. A time is a median over pairs of CUDA events. In front of each run a large fill empties
the L2 cache, and keeps the GPU busy until the launch is in its queue.
"""

import statistics
from collections.abc import Callable
from functools import partial

import torch

from benchmarks.kernel_cases import CASES, TE_QUANTIZER, Case, Draw
from benchmarks.result import Result, Unavailable, compared
from deepseek_mini.config import Config
from deepseek_mini.cost.hardware import choose_device
from deepseek_mini.precision.transformer_engine import why_not_te
from deepseek_mini_kernels import roofline
from deepseek_mini_kernels.backend import why_not_triton

WARM_UPS = 3
FLUSH_BYTES = 1 << 29
"""Ten times the L2 cache of an H100; filling it takes longer than queueing a launch."""

Timer = Callable[[Callable[[], object]], float]
"""From work to seconds."""


def kernels(config: Config, rounds: int, say: Callable[[str], None]) -> list[Result]:
    """Microseconds per launch. Raises Unavailable without a Hopper GPU, RuntimeError for wrong results."""
    device, _ = choose_device(config.device)
    obstacle = why_not_triton(device) if device.type == "cuda" else f"this device is the {device.type}"
    if obstacle:
        raise Unavailable(f"kernels are timed on a Hopper GPU (H100, H800, H200): {obstacle}")
    if obstacle := why_not_te(device):
        say(f"kernels: {TE_QUANTIZER} is left out: {obstacle}")
    timer = CudaTimer(device, rounds)
    return [result for case in CASES for result in compare(case, Draw(device), timer, say)]


class CudaTimer:
    """Median seconds of work on a GPU whose L2 cache holds nothing of it."""

    def __init__(self, device: torch.device, rounds: int) -> None:
        self._rounds, self._device = rounds, device
        self._flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=device)

    def __call__(self, work: Callable[[], object]) -> float:
        for _ in range(WARM_UPS):
            work()
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(self._rounds)]
        for begin, end in events:
            self._flush.zero_()
            begin.record()
            work()
            end.record()
        torch.cuda.synchronize(self._device)
        return statistics.median(begin.elapsed_time(end) for begin, end in events) / 1e3


def compare(case: Case, draw: Draw, timer: Timer, say: Callable[[str], None]) -> list[Result]:
    """A kernel's time beside its floor, then beside each peer's. Raises RuntimeError for wrong results."""
    work = case.work
    say(f"kernels: {work.kernel}, {work.shape}")
    contest = case.build(draw)
    ours, wanted = contest.run(backend="triton"), contest.run(backend="naive")
    if difference := contest.differ(ours, wanted):
        raise RuntimeError(f"{work.kernel}, {work.shape}: differs from the plain reference: {difference}")
    del ours, wanted
    seconds = timer(partial(contest.run, backend="triton"))
    rivals: dict[str, float | None] = {roofline.FLOOR: work.floors[work.bound]}
    rivals |= {name: _time_peer(name, peer, timer, say) for name, peer in contest.peers.items() if peer}
    return [
        compared(
            f"kernels_{work.kernel}",
            1e6 * seconds,
            None if theirs is None else 1e6 * theirs,
            name,
            f"us, {work.shape}",
            more_is_better=False,
        )
        for name, theirs in rivals.items()
    ]


def _time_peer(
    name: str, peer: Callable[[], object], timer: Timer, say: Callable[[str], None]
) -> float | None:
    try:
        return timer(peer)
    except (RuntimeError, ValueError) as error:  # cuBLAS has no algorithm for some shapes
        say(f"kernels: {name} does not do this: {str(error).splitlines()[0]}")
        return None
