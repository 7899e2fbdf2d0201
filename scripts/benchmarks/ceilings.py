"""What the machine itself can do: matrix products in each precision, and reading and writing memory."""

from collections.abc import Callable

import torch

from benchmarks.precisions import precisions
from benchmarks.result import Result
from benchmarks.timing import seconds_of
from deepseek_mini.config import Config
from deepseek_mini.cost.hardware import choose_device, choose_precision

MATMUL_SIZE = {"cpu": 2048, "cuda": 8192}
COPIED_BYTES = {"cpu": 1 << 28, "cuda": 1 << 31}
"""Far more than any cache holds."""
PEER = "the machine itself"


def ceilings(config: Config, rounds: int, say: Callable[[str], None]) -> list[Result]:
    """FLOP/s of a square product, and bytes read and written per second of a copy; the best of the rounds."""
    device, _ = choose_device(config.device)
    results = []
    for precision in precisions(device, say):
        dtype, _ = choose_precision(device, precision)
        size = MATMUL_SIZE[device.type]
        a, b = torch.randn(2, size, size, device=device).to(dtype)
        seconds = min(seconds_of(lambda a=a, b=b: torch.mm(a, b), device) for _ in range(rounds + 1))
        unit = f"FLOP/s, {size} x {size} products"
        results.append(Result(f"machine_matmul_{precision}", 2 * size**3 / seconds, None, PEER, None, unit))
    source = torch.ones(COPIED_BYTES[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = min(seconds_of(lambda: target.copy_(source), device) for _ in range(rounds + 1))
    bandwidth = 2 * source.nbytes / seconds
    return [*results, Result("machine_memory", bandwidth, None, PEER, None, "bytes/s read and written")]
