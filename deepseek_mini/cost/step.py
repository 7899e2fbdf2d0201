"""Seconds of one optimizer step, from a layer's profile: stages, pipeline, optimizer.

    layer pieces -> stages of a layout -> the schedule played -> + collectives and update = step

Every figure may be an array of draws (`cost/draws.py`).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from deepseek_mini.cost.communication import (
    all_to_all_seconds,
    expected_nodes,
    hop_seconds,
    zero1_seconds,
)
from deepseek_mini.cost.draws import LAYOUT, Draws
from deepseek_mini.cost.layer_profile import LayerProfile
from deepseek_mini.cost.layout import LAYOUTS, Stage, stages
from deepseek_mini.cost.pipeline.orders import build_schedule
from deepseek_mini.cost.pipeline.schedule import Kind, Schedule
from deepseek_mini.cost.pipeline.simulate import Seconds, Stages, Timeline, play
from deepseek_mini.cost.plan import GPUS_PER_NODE, Plan
from deepseek_mini.cost.shape import Shape

EXPOSED = 0.033
"""Communication that an overlapped pair fails to hide, over its compute; V3's trace, for other profiles."""
UPDATE_BYTES = 22
"""AdamW per parameter: gradient and master read (4 + 4), moments in BF16 read and written (4 + 4), master and
BF16 weight written (4 + 2), arXiv:2412.19437 section 3.3.3."""

WORK: dict[Kind, tuple[str, ...]] = {
    Kind.forward: ("forward",),
    Kind.backward: ("input_grad", "weight_grad"),
    Kind.input_grad: ("input_grad",),
    Kind.weight_grad: ("weight_grad",),
}


@dataclass(frozen=True, slots=True)
class StepTime:
    """One layout's step. `seconds` is the pipeline's makespan and the optimizer's together."""

    stages: list[Stage]
    timeline: Timeline
    optimizer: Seconds

    @property
    def seconds(self) -> Seconds:
        return self.timeline.seconds + self.optimizer


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds of the stages of a plan on the profile's device."""

    plan: Plan
    profile: LayerProfile
    profile_shape: Shape
    draws: Draws

    def with_seconds(self, seconds: dict[str, dict[str, float]]) -> "Costs":
        """The same with other seconds of the pieces."""
        return replace(self, profile=replace(self.profile, seconds=seconds))

    def compute(self, stage: Stage, kind: Kind) -> Seconds:
        """GPU time of a stage's own work on one micro-batch, as in the trace (beside communication)."""
        layers = stage.n_dense + stage.n_moe + stage.n_mtp
        n_moe = stage.n_moe + stage.n_mtp
        total = np.zeros(1)
        for work in WORK[kind]:
            attention = layers * self._attention(work) + stage.n_mtp * self._projection(work)
            mlp = stage.n_dense * self._mlp(work, moe=False)
            total = total + attention + mlp + n_moe * self._mlp(work, moe=True) * self.draws["imbalance"]
        return total * self.draws["layer_time"] + len(WORK[kind]) * stage.n_heads * self._head()

    def all_to_all(self, stage: Stage, kind: Kind) -> Seconds:
        """Dispatch and combine of a stage with nothing to hide behind; weight gradients have none."""
        if kind is Kind.weight_grad or self.plan.ep == 1:
            return np.zeros(1)
        shape, ep = self.plan.shape, self.plan.ep
        n_nodes = max(1, ep // GPUS_PER_NODE)
        nodes = expected_nodes(shape.n_experts, shape.top_k, n_nodes, self.plan.nodes_per_token)
        seconds = all_to_all_seconds(shape.dim, self.plan.sequence_length, nodes, ep)
        layers = stage.n_moe + stage.n_mtp
        return layers * seconds * self.draws["imbalance"] * self.draws["bare_all_to_all"]

    def duration(self, layout: list[Stage]) -> Callable[[Stages], Seconds]:
        """Seconds of a step of the schedule, for `play`."""

        def seconds(step: Stages) -> Seconds:
            parts = [(layout[stage], kind) for kind, stage in step]
            compute = sum((self.compute(stage, kind) for stage, kind in parts), np.zeros(1))
            alone = sum((self.all_to_all(stage, kind) for stage, kind in parts), np.zeros(1))
            if len(step) == 1:
                return compute * self.draws["bare_compute"] + alone
            return np.maximum(compute * self.pair_over_compute(), alone)

        return seconds

    def pair_over_compute(self) -> float:
        """An overlapped pair's seconds over its compute's: as timed, or with the usual exposed share."""
        if self.profile.pair_seconds is None:
            return 1 + EXPOSED
        return self.profile.pair_seconds / sum(sum(parts.values()) for parts in self.profile.seconds.values())

    def optimizer(self, layout: list[Stage], schedule: Schedule) -> Seconds:
        """Of the fullest rank: collectives of ZeRO-1, then AdamW on its share, bound by memory."""
        plan = self.plan
        copies = 2 if plan.schedule == "dualpipe" else 1
        replicas = plan.n_pipelines * copies
        memory = (plan.cluster.gpu.memory_gbps or 2000.0) * 1e9
        seconds = []
        for held in stages_by_rank(schedule, layout):
            dense, experts = (
                sum(part) for part in zip(*(stage_parameters(plan.shape, s) for s in held), strict=True)
            )
            local = experts / plan.ep
            collectives = zero1_seconds(dense, replicas) + zero1_seconds(local, replicas // plan.ep)
            update = UPDATE_BYTES * (dense / replicas + local / (replicas // plan.ep)) / memory
            norm = 4 * (dense + local) / memory
            seconds.append(collectives * self.draws["optimizer_exposed"] + update + norm)
        return np.maximum.reduce(seconds)

    def _attention(self, work: str) -> float:
        """One layer, scaled from the profile's shape by FLOPs, and by width where no product is done."""
        new, old = self.plan.shape, self.profile_shape
        parts = self.profile.seconds[f"attention_{work}"]
        length = self.plan.sequence_length / self.profile.sequence_length
        core = (
            new.n_heads
            * (new.key_width + new.value_width)
            / (old.n_heads * (old.key_width + old.value_width))
        )
        gemm = new.attention_weights / old.attention_weights
        scaled = (
            parts["gemm"] * gemm + parts["core"] * core * length + parts["elementwise"] * new.dim / old.dim
        )
        return scaled * self._tokens

    def _mlp(self, work: str, *, moe: bool) -> float:
        new, old = self.plan.shape, self.profile_shape
        parts = self.profile.seconds[f"mlp_{work}"]
        moe_weights = new.shared_weights + new.top_k * new.expert_weights
        weights = moe_weights if moe else new.dense_weights
        gemm = parts["gemm"] * weights / (old.shared_weights + old.top_k * old.expert_weights)
        return (gemm + parts["elementwise"] * new.dim / old.dim) * self._tokens

    def _projection(self, work: str) -> float:
        """MTP's product of width 2h x h, at the rate of attention's products."""
        gemm = self.profile.seconds[f"attention_{work}"]["gemm"]
        return gemm * 2 * self.plan.shape.dim**2 / self.profile_shape.attention_weights * self._tokens

    def _head(self) -> Seconds:
        """One product with the output head, in BF16, in any of the three directions."""
        flops = 2 * self.plan.shape.head_weights * self.plan.sequence_length
        return flops / (self.plan.cluster.peak * self.draws["head_efficiency"])

    @property
    def _tokens(self) -> float:
        """A micro-batch's tokens over the profile's."""
        return self.plan.sequence_length / self.profile.tokens


def step_time(costs: Costs, layout: str, n_micro_batches: int | None = None) -> StepTime:
    """Play one step. Raises ValueError if the schedule lacks micro-batches."""
    plan = costs.plan
    held = stages(plan.shape, plan.pp, layout)
    schedule = build_schedule(plan.schedule, plan.pp, n_micro_batches or plan.n_micro_batches)
    network = (plan.cluster.gpu.network_gbps or 25.0) * 1e9
    hop = hop_seconds(plan.shape.dim, plan.sequence_length, network)
    return StepTime(held, play(schedule, costs.duration(held), hop), costs.optimizer(held, schedule))


def step_seconds(costs: Costs) -> NDArray[np.float64]:
    """Seconds of a step for every draw, each with the layout that it drew."""
    chosen = costs.draws[LAYOUT].astype(int)
    seconds = np.zeros(len(chosen))
    for index, layout in enumerate(LAYOUTS):
        mask = chosen == index
        if mask.any():
            part = {name: values[mask] for name, values in costs.draws.items()}
            seconds[mask] = step_time(replace(costs, draws=part), layout).seconds
    return seconds


def stages_by_rank(schedule: Schedule, layout: list[Stage]) -> list[list[Stage]]:
    """What each rank of a pipeline holds."""
    return [[layout[index] for index in schedule.stages_of(rank)] for rank in range(len(schedule.ranks))]


def stage_parameters(shape: Shape, stage: Stage) -> tuple[float, float]:
    """Of a stage: those that every pipeline holds, and those of routed experts."""
    layers, n_moe = stage.n_dense + stage.n_moe + stage.n_mtp, stage.n_moe + stage.n_mtp
    dense = layers * shape.attention_weights + stage.n_dense * shape.dense_weights
    dense += n_moe * (shape.shared_weights + shape.n_experts * shape.dim)
    dense += stage.n_mtp * 2 * shape.dim**2 + (2 * shape.head_weights if stage.n_heads else 0)
    return dense, n_moe * shape.n_experts * shape.expert_weights
