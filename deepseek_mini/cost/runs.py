"""Published training runs: tokens, GPUs and GPU-hours, as rows that a prediction can be scored on."""

from dataclasses import dataclass

from deepseek_mini.cost.devices import bf16_peak, find_gpu
from deepseek_mini.cost.flops import flops_per_token
from deepseek_mini.cost.shape import Shape, shape_of_row
from deepseek_mini.cost.tables import number, whole

NEEDED = ("gpu_hours", "tokens_T", "gpu", "layers", "hidden", "heads", "vocab")
"""Columns without which a run can be neither predicted nor scored."""
FULL_RECOMPUTE = 4 / 3
"""FLOPs done over model FLOPs where every block runs forward again: 4 passes for 3."""


@dataclass(frozen=True, slots=True)
class Run:
    """One training run. `gpu_hours` is None for a run that is only to be predicted."""

    model: str
    org: str
    year: int
    shape: Shape
    sequence_length: int
    tokens: float
    gpu: str
    full_recompute: bool
    gpu_hours: float | None = None

    @property
    def flops(self) -> float:
        """Model FLOPs, causal, without MTP and gate; recomputation is not model work."""
        return self.tokens * flops_per_token(self.shape, self.sequence_length)

    @property
    def peak(self) -> float:
        """BF16 FLOP/s of one GPU."""
        return bf16_peak(find_gpu(self.gpu))

    @property
    def ideal_hours(self) -> float:
        """GPU-hours at the BF16 peak."""
        return self.flops / self.peak / 3600

    @property
    def mfu(self) -> float:
        assert self.gpu_hours is not None
        return self.ideal_hours / self.gpu_hours


@dataclass(frozen=True, slots=True)
class Excluded:
    """A row that is not scored, and why."""

    model: str
    org: str
    reason: str


def parse_runs(rows: list[dict[str, str]]) -> tuple[list[Run], list[Excluded]]:
    """Runs that can be scored and those that cannot, in the order of the file.

    A row is left out if its column `clean_for_backtest` is 0, if it lacks hours, tokens or dimensions, or if
    its device has no BF16 peak in `data/devices.csv`. An empty year is 2024, an empty length 4096. Raises
    ValueError naming the line if a column is missing or a number is not positive.
    """
    if missing := {"model", "org", *NEEDED} - set(rows[0]):
        raise ValueError(f"no column {sorted(missing)[0]!r}; see deepseek_mini/cost/data/published_runs.csv")
    runs: list[Run] = []
    excluded: list[Excluded] = []
    for line, row in enumerate(rows, start=2):
        reason = _why_not(row) or _why_unknown(row["gpu"])
        if reason:
            excluded.append(Excluded(row["model"], row["org"], reason))
            continue
        try:
            runs.append(_parse(row))
        except ValueError as error:
            raise ValueError(f"line {line} ({row['model']}): {error}") from error
    return runs, excluded


def _why_not(row: dict[str, str]) -> str | None:
    if row.get("clean_for_backtest", "1").strip().lower() in ("0", "0.0", "false", "no"):
        return row.get("note") or row.get("number_kind") or "marked as not clean"
    moe = row.get("n_experts", "").strip() not in ("", "0")
    widths = [name for name in row if name.startswith("head_dim")]
    needed = (*NEEDED, *widths, *(("top_k", "expert_ffn") if moe else ("ffn",)))
    empty = [name for name in needed if not row.get(name, "").strip()]
    return f"no {', '.join(empty)}" if empty else None


def _why_unknown(gpu: str) -> str | None:
    try:
        bf16_peak(find_gpu(gpu))
    except ValueError as error:
        return str(error)
    return None


def _parse(row: dict[str, str]) -> Run:
    hours, tokens = number(row, "gpu_hours"), number(row, "tokens_T")
    if hours is None or tokens is None or min(hours, tokens) <= 0:
        raise ValueError(f"gpu_hours={row['gpu_hours']} and tokens_T={row['tokens_T']} must be positive")
    year, length = whole(row, "year", 2024), whole(row, "seq_len", 4096)
    if not 2000 <= year <= 2100 or not length:
        raise ValueError(f"year={year} and seq_len={length} must be a year and a number of tokens")
    return Run(
        model=row["model"],
        org=row["org"],
        year=year,
        shape=shape_of_row(row),
        sequence_length=length,
        tokens=tokens * 1e12,
        gpu=row["gpu"],
        full_recompute=row.get("recompute", "").strip().lower() == "full",
        gpu_hours=hours,
    )
