"""A training run to be costed: model, tokens, cluster, and how the model is spread over it."""

import math
import re
from dataclasses import dataclass

from deepseek_mini.config import Config
from deepseek_mini.cost.devices import Gpu, bf16_peak, find_gpu
from deepseek_mini.cost.flops import active_params
from deepseek_mini.cost.pipeline.orders import SCHEDULES
from deepseek_mini.cost.shape import Shape, shape_of
from deepseek_mini.cost.tables import number, read_table

GPUS_PER_NODE = 8


@dataclass(frozen=True, slots=True)
class Cluster:
    gpu: Gpu
    n_gpus: int

    @property
    def name(self) -> str:
        return f"{self.n_gpus:,} {self.gpu.name}"

    @property
    def peak(self) -> float:
        """BF16 FLOP/s of one GPU."""
        return bf16_peak(self.gpu)


@dataclass(frozen=True, slots=True)
class LaterStage:
    """What follows pre-training."""

    name: str
    tokens: float
    sequence_length: int
    efficiency: str
    """Name of its efficiency in `data/run_priors.csv`, over pre-training's."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One run. A micro-batch is one sequence."""

    model: str
    shape: Shape
    active_parameters: int
    tokens: float
    """Of pre-training."""
    sequence_length: int
    batch_size: int
    """Sequences per optimizer step, after the ramp."""
    ramp_from: float
    """Batch at the start, as a share of `batch_size`."""
    ramp_tokens: float
    nodes_per_token: int
    """Nodes that a token's experts may lie on."""
    cluster: Cluster
    pp: int
    ep: int
    schedule: str
    later: tuple[LaterStage, ...]

    @property
    def n_ranks(self) -> int:
        """GPUs of one pipeline."""
        return _ranks_of_a_pipeline(self.schedule, self.pp)

    @property
    def n_pipelines(self) -> int:
        return self.cluster.n_gpus // self.n_ranks

    @property
    def n_micro_batches(self) -> int:
        return self.batch_size // self.n_pipelines

    def __post_init__(self) -> None:
        if not 0 < self.tokens < math.inf:
            raise ValueError(f"--tokens={self.tokens:g} must be positive")
        if self.batch_size < 1:
            raise ValueError(f"--batch={self.batch_size}: at least one sequence")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"--schedule={self.schedule}: choose one of {', '.join(SCHEDULES)}")
        if min(self.pp, self.ep) < 1 or self.pp > self.shape.n_layers:
            raise ValueError(
                f"--pp={self.pp} --ep={self.ep}: at least 1, and --pp at most {self.shape.n_layers}"
            )
        if self.schedule in ("dualpipe", "dualpipe_v", "interleaved") and self.pp % 2:
            raise ValueError(f"--schedule={self.schedule} needs an even number of stages, got --pp={self.pp}")
        for whole, part, what in (
            (self.cluster.n_gpus, self.n_ranks, "GPUs of the cluster by the {1} ranks of a pipeline (--pp)"),
            (
                self.batch_size,
                self.n_pipelines,
                "sequences of a step by the {1} pipelines (--batch, --cluster, --pp)",
            ),
            (self.n_pipelines, self.ep, "pipelines by the {1} GPUs of expert parallelism (--ep)"),
            (self.shape.n_experts, self.ep, "experts by the {1} GPUs of expert parallelism (--ep)"),
        ):
            if not part or whole % part:
                raise ValueError(f"{whole} does not divide: " + what.format(whole, part))


def parse_cluster(text: str) -> Cluster:
    """`h800_2048` is 2,048 H800. Raises ValueError with the form, or the devices there are."""
    match = re.fullmatch(r"(.+?)_(\d+)", text.strip())
    if match is None or int(match[2]) < 1:
        raise ValueError(f"--cluster={text}: write device_count, as in h800_2048")
    gpu = find_gpu(match[1].replace("_", " "))
    bf16_peak(gpu)
    return Cluster(gpu, int(match[2]))


def make_plan(
    model: str,
    config: Config,
    cluster: Cluster,
    *,
    tokens: float | None = None,
    batch_size: int | None = None,
    pp: int | None = None,
    ep: int | None = None,
    schedule: str | None = None,
    later_stages: bool = True,
) -> Plan:
    """The plan of a shipped model, from its recipe; what is None is the model's own or, failing that, plain.

    Of the model's own expert parallelism a smaller cluster takes what divides it, and its own schedule needs
    an even number of stages. Raises ValueError naming the option that does not fit.
    """
    known = {row["model"]: row for row in read_table("plans")}.get(model, {})
    default_tokens = config.trainer.max_tokens
    if tokens is None and default_tokens is None:
        raise ValueError(f"{model} names no number of tokens; give --tokens")
    ramp = config.schedule.batch_size[0]
    total = float(tokens if tokens is not None else default_tokens or 0)
    pp = pp if pp is not None else int(number(known, "pp") or 1)
    schedule = schedule or (known.get("schedule", "1f1b") if pp % 2 == 0 else "1f1b")
    if ep is None:
        ranks = _ranks_of_a_pipeline(schedule, pp)
        ep = math.gcd(int(number(known, "ep") or 1), cluster.n_gpus // max(ranks, 1))
    return Plan(
        model=model,
        shape=shape_of(config.model),
        active_parameters=active_params(config.model),
        tokens=total,
        sequence_length=config.data.sequence_length,
        batch_size=config.data.batch_size if batch_size is None else batch_size,
        ramp_from=1.0 if ramp.start is None else ramp.start,
        ramp_tokens=0.0 if ramp.start is None else ramp.until * total,
        nodes_per_token=config.model.n_limited_groups,
        cluster=cluster,
        pp=pp,
        ep=ep,
        schedule=schedule,
        later=_later(model) if later_stages else (),
    )


def _ranks_of_a_pipeline(schedule: str, pp: int) -> int:
    """DualPipeV and interleaving put two stages on each GPU."""
    return pp // 2 if schedule in ("dualpipe_v", "interleaved") else pp


def _later(model: str) -> tuple[LaterStage, ...]:
    return tuple(
        LaterStage(row["stage"], float(row["tokens"]), int(row["sequence_length"]), row["efficiency"])
        for row in read_table("stages")
        if row["model"] == model
    )
