"""What the machine itself can do: matrix products in each precision, and reading and writing memory.

All benchmarks count against one peak, `matmul_peak`, as the MFU of a run does. A GPU's is that of its data
sheet; how fast large products run is timed beside it. A CPU's is measured, as the best of the products that
fit into a fraction of a second, and told here as it was counted with.
"""

import torch

from benchmarks.result import Result
from benchmarks.timing import seconds_of
from deepseek_mini.config import Format
from deepseek_mini.cost.hardware import Peak, choose_precision

GPU_MATMUL_SIZE = 8192
COPIED_BYTES = {"cpu": 1 << 28, "cuda": 1 << 31}
"""Far more than any cache holds."""
PEER = "the machine itself"


def ceilings(device: torch.device, peaks: dict[Format, Peak], rounds: int) -> list[Result]:
    """FLOP/s of square products, and bytes read and written per second of a copy; the best of the rounds.

    `peaks` are those that were counted against.
    """
    results: list[Result] = []
    for precision, peak in peaks.items():
        rate, source = peak.flops_per_second, peak.source
        if device.type == "cuda":
            rate, source = _measured(device, precision, rounds)
        results.append(Result(f"machine_matmul_{precision}", rate, None, PEER, None, f"FLOP/s ({source})"))
    full = torch.ones(COPIED_BYTES[device.type], dtype=torch.uint8, device=device)
    copy = torch.empty_like(full)
    seconds = min(seconds_of(lambda: copy.copy_(full), device) for _ in range(rounds + 1))
    bandwidth = 2 * full.nbytes / seconds
    return [*results, Result("machine_memory", bandwidth, None, PEER, None, "bytes/s read and written")]


def _measured(device: torch.device, precision: Format, rounds: int) -> tuple[float, str]:
    """FLOP/s of large products, and in words what they were."""
    size = GPU_MATMUL_SIZE
    dtype, _ = choose_precision(device, precision)
    a, b = torch.randn(2, size, size, device=device).to(dtype)
    seconds = min(seconds_of(lambda: torch.mm(a, b), device) for _ in range(rounds + 1))
    return 2 * size**3 / seconds, f"measured: {size}x{size} matmuls"
