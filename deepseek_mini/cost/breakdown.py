"""Where a step's GPU-seconds go, and what a rank keeps in memory."""

import numpy as np

from deepseek_mini.cost.layout import Stage
from deepseek_mini.cost.pipeline.orders import build_schedule
from deepseek_mini.cost.pipeline.schedule import Kind
from deepseek_mini.cost.pipeline.simulate import peak_activations
from deepseek_mini.cost.plan import Plan
from deepseek_mini.cost.step import Costs, StepTime, stage_parameters, stages_by_rank

STATE_BYTES = {"weights, BF16": 2, "gradients, FP32": 4}
"""Per parameter on the rank (arXiv:2412.19437 section 3.3.3)."""
SHARDED_BYTES = 8
"""FP32 master and two BF16 moments, per parameter, over the replicas (ZeRO-1)."""


def step_shares(costs: Costs, step: StepTime) -> dict[str, float]:
    """Shares of all ranks' seconds: parts of the layers, head, all-to-all, bubble, optimizer.

    Parts are the profile's own times with their imbalance; the all-to-all is what the played steps take more.
    """
    n_ranks = len(step.timeline.ranks)
    total = float(step.seconds[0]) * n_ranks
    bubble = sum(float(step.timeline.bubble(rank)[0]) for rank in range(n_ranks))
    head = _head_seconds(costs, step) * costs.plan.n_micro_batches
    parts = _layer_parts(costs, step)
    work = sum(float(step.timeline.busy(rank)[0]) for rank in range(n_ranks))
    parts["head"] = head
    parts["all-to-all not hidden"] = work - sum(parts.values())
    parts |= {"bubble": bubble, "optimizer": float(step.optimizer[0]) * n_ranks}
    return {name: seconds / total for name, seconds in parts.items()}


def rank_memory(plan: Plan, layout: list[Stage], activation_bytes: float) -> list[dict[str, float]]:
    """Bytes on each rank of a pipeline: weights, gradients, ZeRO-1's share of the optimizer, activations.

    `activation_bytes` is what one micro-batch leaves on one layer (`layer_activation_bytes`).
    """
    schedule = build_schedule(plan.schedule, plan.pp, plan.n_micro_batches)
    replicas = plan.n_pipelines * (2 if plan.schedule == "dualpipe" else 1)
    result = []
    for rank, held in enumerate(stages_by_rank(schedule, layout)):
        dense, experts = (
            sum(part) for part in zip(*(stage_parameters(plan.shape, s) for s in held), strict=True)
        )
        local = dense + experts / plan.ep
        sharded = dense / replicas + experts / plan.ep / (replicas // plan.ep)
        peak = peak_activations(schedule, rank, lambda stage: layers(layout[stage]) * activation_bytes)
        memory = {name: size * local for name, size in STATE_BYTES.items()}
        result.append({**memory, "optimizer": SHARDED_BYTES * sharded, "activations": peak})
    return result


def layer_activation_bytes(plan: Plan) -> float:
    """What one micro-batch leaves on a layer: inputs of products, in FP8 (12 bits for W_O).

    RMSNorms, MLA's up-projections and SwiGLU's output run again (arXiv:2412.19437 sections 3.2.3 and 3.3.3):
    kept are the block's two residuals, both latents, attention's output, and of k + 1 experts the input and
    the two inner halves.
    """
    shape = plan.shape
    latents = shape.q_rank + shape.kv_rank + shape.rope_width or 3 * shape.n_heads * shape.key_width
    attention = 2 * 2 * shape.dim + latents + 1.5 * shape.n_heads * shape.value_width
    experts = shape.top_k * (shape.dim + 2 * shape.expert_width) + 2 * shape.shared_width
    return plan.sequence_length * float(attention + max(experts, 2 * shape.dense_width))


def layers(stage: Stage) -> int:
    return stage.n_dense + stage.n_moe + stage.n_mtp


def _head_seconds(costs: Costs, step: StepTime) -> float:
    """Head products of one micro-batch, all three directions."""
    bare = [Stage(n_heads=stage.n_heads) for stage in step.stages]
    kinds = (Kind.forward, Kind.backward)
    return sum(float(costs.compute(stage, kind)[0]) for stage in bare for kind in kinds)


def _layer_parts(costs: Costs, step: StepTime) -> dict[str, float]:
    """Seconds of a step's layers by part: everything that `compute` counts, the head apart."""
    names = {
        "attention products": ("attention", "gemm"),
        "attention core": ("attention", "core"),
        "MLP products": ("mlp", "gemm"),
        "element-wise": ("", "elementwise"),
    }
    kinds = (Kind.forward, Kind.backward)
    result = {}
    for name, (piece, part) in names.items():
        kept = {
            p: {q: s if q == part and p.startswith(piece) else 0.0 for q, s in parts.items()}
            for p, parts in costs.profile.seconds.items()
        }
        partial = costs.with_seconds(kept)
        stages = [Stage(s.n_dense, s.n_moe, s.n_mtp) for s in step.stages]
        seconds = np.sum([partial.compute(stage, kind) for stage in stages for kind in kinds], axis=0)
        result[name] = float(seconds[0]) * costs.plan.n_micro_batches
    return result
