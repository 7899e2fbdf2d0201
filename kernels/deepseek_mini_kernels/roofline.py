"""The least time each kernel could take on an H100 or H800: bytes over bandwidth, work over peaks.

    python -m deepseek_mini_kernels.roofline [FILE] [--write README]

prints the table of kernels/README.md, or writes it there; FILE is what `scripts/benchmark.py kernels --json`
measured on a GPU.

Legend: M tokens, N outputs, K inputs, S rows of experts, E experts, I inner width.
"""

import argparse
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepseek_mini_kernels.formats import BLOCK, blocks

FP8_FLOPS = 1978.9e12
"""Dense E4M3 products per second of an H100 or H800 SXM (data sheet)."""
FP32_FLOPS = 66.9e12
"""Float32 operations per second of the other cores, which add up the blocks (data sheet)."""
BANDWIDTH = 3.35e12
"""Bytes per second of its HBM3 (data sheet)."""

FP8_BYTES, BF16_BYTES, FP32_BYTES, INT64_BYTES = 1, 2, 4, 8


@dataclass(frozen=True, slots=True)
class Work:
    """What one launch has to do at the least; every operand travels once."""

    kernel: str
    shape: str
    bytes: int
    flops: int = 0
    """On tensor cores."""
    promotion_flops: int = 0
    """On other cores: a multiply-add per result and block of 128, with tiles a product of factors too."""

    @property
    def floors(self) -> dict[str, float]:
        """Seconds that memory, tensor cores and the other cores take if they do nothing else."""
        return {
            "memory": self.bytes / BANDWIDTH,
            "tensor cores": self.flops / FP8_FLOPS,
            "promotion": self.promotion_flops / FP32_FLOPS,
        }

    @property
    def bound(self) -> str:
        """What takes longest."""
        return max(self.floors, key=lambda name: self.floors[name])


def quantize_rows(m: int, k: int) -> Work:
    written = m * k * FP8_BYTES + m * blocks(k) * FP32_BYTES
    return Work("quantize_activation", f"M {m}, K {k}", m * k * BF16_BYTES + written)


def quantize_columns(m: int, k: int) -> Work:
    written = m * k * FP8_BYTES + k * blocks(m) * FP32_BYTES
    return Work("quantize_columns", f"M {m}, K {k}", m * k * BF16_BYTES + written)


def quantize_both(m: int, k: int) -> Work:
    factors = (m * blocks(k) + k * blocks(m)) * FP32_BYTES
    return Work("quantize_rows_and_columns", f"M {m}, K {k}", m * k * (BF16_BYTES + 2 * FP8_BYTES) + factors)


def requantize(m: int, k: int) -> Work:
    factors = (m * blocks(k) + k * blocks(m)) * FP32_BYTES
    return Work("requantize_columns", f"M {m}, K {k}", 2 * m * k * FP8_BYTES + factors)


def quantize_weight(n: int, k: int, transpose: bool = True) -> Work:
    written = n * k * FP8_BYTES * (2 if transpose else 1) + blocks(n) * blocks(k) * FP32_BYTES
    name = "quantize_weight_and_transpose" if transpose else "quantize_weight"
    return Work(name, f"N {n}, K {k}", n * k * FP32_BYTES + written)


def matmul(m: int, n: int, k: int, tiles: bool = False) -> Work:
    """`tiles`: b has 1x128 tiles and the result is float32, as in Wgrad."""
    b_factors = n * blocks(k) if tiles else blocks(n) * blocks(k)
    result = m * n * (FP32_BYTES if tiles else BF16_BYTES)
    return Work(
        "block_scaled_matmul, tiles" if tiles else "block_scaled_matmul",
        f"M {m}, N {n}, K {k}",
        (m + n) * k * FP8_BYTES + (m * blocks(k) + b_factors) * FP32_BYTES + result,
        2 * m * n * k,
        (3 if tiles else 2) * m * n * blocks(k),
    )


def grouped(s: int, e: int, n: int, k: int) -> Work:
    weights = e * n * k * FP8_BYTES + e * blocks(n) * blocks(k) * FP32_BYTES
    rows = s * k * FP8_BYTES + s * blocks(k) * FP32_BYTES + s * n * BF16_BYTES
    return Work(
        "grouped_matmul",
        f"S {s}, E {e}, N {n}, K {k}",
        weights + rows + e * INT64_BYTES,
        2 * s * n * k,
        2 * s * n * blocks(k),
    )


def wgrad(s: int, e: int, n: int, k: int) -> Work:
    """Rows spread evenly, in whole tiles of 128."""
    return Work(
        "grouped_wgrad",
        f"S {s}, E {e}, N {n}, K {k}",
        (n + k) * (s * FP8_BYTES + s // BLOCK * FP32_BYTES) + e * n * k * FP32_BYTES + e * INT64_BYTES,
        2 * s * n * k,
        3 * n * k * (s // BLOCK),
    )


def swiglu(s: int, i: int) -> Work:
    written = s * i * FP8_BYTES + s * blocks(i) * FP32_BYTES
    return Work("swiglu_quantize", f"S {s}, I {i}", 2 * s * i * BF16_BYTES + s * FP32_BYTES + written)


def swiglu_columns(s: int, i: int) -> Work:
    written = s * i * FP8_BYTES + i * blocks(s) * FP32_BYTES
    return Work("swiglu_quantize_columns", f"S {s}, I {i}", 2 * s * i * BF16_BYTES + s * FP32_BYTES + written)


def route(m: int, e: int, k: int) -> Work:
    moved = 2 * m * e * FP32_BYTES + e * FP32_BYTES + m * k * (FP32_BYTES + INT64_BYTES)
    return Work("route", f"M {m}, E {e}, top {k}", moved)


V3 = (
    quantize_rows(8192, 7168),
    quantize_both(8192, 7168),
    requantize(8192, 7168),
    quantize_weight(7168, 16384),
    matmul(8192, 24576, 1536),
    matmul(8192, 7168, 16384),
    matmul(7168, 16384, 8192, tiles=True),
    grouped(65536, 32, 2048, 7168),
    grouped(65536, 32, 7168, 2048),
    wgrad(65536, 32, 2048, 7168),
    swiglu(65536, 2048),
    swiglu_columns(65536, 2048),
    route(8192, 256, 8),
)
"""Shapes of V3: two sequences of 4,096 tokens; wq_b, wo and its Wgrad; 32 experts of a device."""


NOT_MEASURED = "*not measured*"
FLOOR = "the floor of an H100 or H800"
"""What a benchmark calls its peer where that is a floor of this table."""


@dataclass(frozen=True, slots=True)
class Measured:
    """Seconds that the kernels took, by kernel and shape."""

    device: str
    seconds: Mapping[tuple[str, str], float]

    @staticmethod
    def read(report: Mapping[str, Any]) -> "Measured":
        """From the JSON of `scripts/benchmark.py kernels`, whose times are in microseconds."""
        rows = [row for row in report["results"] if row["peer_name"] == FLOOR]
        seconds = {
            (row["name"].removeprefix("kernels_"), row["unit"].removeprefix("us, ")): row["ours"] / 1e6
            for row in rows
        }
        return Measured(report["device"], seconds)


def table(measured: Measured | None = None, works: tuple[Work, ...] = V3) -> str:
    """The roofline as Markdown; with what was measured, the share of the floor's speed that it reached."""
    lines = [
        "| kernel | shape | MB | GFLOP | promotion GFLOP | floor, us | bound by | measured |",
        "|---|---|---:|---:|---:|---:|---|---|",
    ]
    for work in works:
        flops = [f"{x / 1e9:,.1f}" if x else "" for x in (work.flops, work.promotion_flops)]
        floor = work.floors[work.bound]
        seconds = measured.seconds.get((work.kernel, work.shape)) if measured else None
        reached = NOT_MEASURED if seconds is None else f"{1e6 * seconds:,.1f} us, {floor / seconds:.0%}"
        cells = (f"`{work.kernel}`", work.shape, f"{work.bytes / 1e6:,.1f}", *flops, f"{1e6 * floor:,.1f}")
        lines.append(f"| {' | '.join((*cells, work.bound, reached))} |")
    return "\n".join([*lines, "", f"Measured on {measured.device}."] if measured else lines)


def with_table(page: str, new: str) -> str:
    """A Markdown page with its table of kernels, and the line on the device below it, replaced."""
    old = re.compile(r"^\| kernel \| shape (?:.*\n)(?:\|.*\n?)+(?:\nMeasured on .*\n?)?", re.MULTILINE)
    page, replaced = old.subn(lambda _: new + "\n", page)
    assert replaced == 1
    return page


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="deepseek_mini_kernels.roofline")
    parser.add_argument("file", nargs="?", type=Path, help="JSON of scripts/benchmark.py kernels --json")
    parser.add_argument("--write", type=Path, metavar="README", help="replace the table in this page")
    arguments = parser.parse_args(argv)
    report = json.loads(arguments.file.read_text()) if arguments.file else None
    text = table(Measured.read(report) if report else None)
    if arguments.write:
        arguments.write.write_text(with_table(arguments.write.read_text(), text))
    else:
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
