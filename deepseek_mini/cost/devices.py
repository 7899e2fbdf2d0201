"""GPUs: dense matmul peaks, memory and links, from `data/devices.csv`, each row with its source."""

import functools
import re
from dataclasses import dataclass

from deepseek_mini.cost.tables import number, read_table


@dataclass(frozen=True, slots=True)
class Gpu:
    """One kind of GPU. Peaks are dense TFLOPS, accumulating in FP32; None where none is known."""

    name: str
    driver_name: str
    """Regular expression for the whole name that the driver gives, without its `NVIDIA `."""
    bf16: float | None
    fp8: float | None
    tf32: float | None
    fp32: float | None
    memory_gb: float | None
    memory_gbps: float | None
    """GB/s."""
    nvlink_gbps: float | None
    """GB/s, both directions together, as data sheets print it."""
    network_gbps: float | None
    """GB/s of one GPU's own network card, one way, in the usual 8-GPU system."""
    watts: float | None
    source: str


@functools.cache
def gpus() -> tuple[Gpu, ...]:
    return tuple(_gpu(row) for row in read_table("devices"))


def find_gpu(name: str) -> Gpu:
    """The GPU called `name`, as in `h800`, `H100` or the driver's own `NVIDIA H100 80GB HBM3`.

    Memory sizes, sockets and `DGX-`, as in `A100-80`, `H100 SXM5 80GB` and `DGX-GB200`, are passed over.
    Raises ValueError with the names there are.
    """
    bare = re.sub(r"^(NVIDIA |DGX-|HGX-)", "", name.strip(), flags=re.IGNORECASE)
    short = re.sub(r"([ -]SXM\d?|-\d+|[ -]\(?\d+ ?GB?\)?)+$", "", bare, flags=re.IGNORECASE)
    for gpu in gpus():
        if short.lower() == gpu.name.lower() or re.fullmatch(gpu.driver_name, bare, re.IGNORECASE):
            return gpu
    known = ", ".join(gpu.name for gpu in gpus() if gpu.bf16)
    raise ValueError(
        f"unknown device {name!r}; known: {known} (add others to deepseek_mini/cost/data/devices.csv)"
    )


def bf16_peak(gpu: Gpu) -> float:
    """Dense BF16 FLOP/s, the denominator of MFU here. Raises ValueError where none is known."""
    if gpu.bf16 is None:
        raise ValueError(f"device {gpu.name} has no BF16 matmul peak")
    return gpu.bf16 * 1e12


def _gpu(row: dict[str, str]) -> Gpu:
    texts = {column: row[column] for column in ("name", "driver_name", "source")}
    numbers = {column: number(row, column) for column in row if column not in texts}
    return Gpu(**texts, **numbers)  # pyright: ignore[reportArgumentType]
