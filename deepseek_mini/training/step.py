"""One optimizer step.

Losses are sums over micro-batches divided by counts of the whole step, known before the first forward
pass: the result does not depend on how the batch is cut up.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from deepseek_mini.config import ModelConfig
from deepseek_mini.data import Batch
from deepseek_mini.model.mtp import IGNORE, mtp_targets
from deepseek_mini.model.router import update_bias
from deepseek_mini.model.transformer import Losses, Transformer
from deepseek_mini.optim.build import set_learning_rate
from deepseek_mini.optim.schedule import StepPlan
from deepseek_mini.precision.casts import holding_casts
from deepseek_mini.precision.convert import holding_weights
from deepseek_mini.training.guards import guard_update


@dataclass(slots=True)
class StepResult:
    """What a step did; tensors are on the model's device."""

    loss: Tensor
    """What was minimised: main + weighted MTP + weighted balance loss, nats per token."""
    main_loss: Tensor
    mtp_loss: Tensor | None
    """Mean over depths, unweighted; None without MTP."""
    grad_norm: Tensor
    """Global norm before clipping."""
    counts_LE: Tensor
    """int64 tokens per expert over the whole step: MoE layers, then MTP's."""


@dataclass(slots=True)
class StepCounts:
    """Denominators of a step's losses."""

    main_tokens: int
    mtp_tokens: list[int]
    rows: int


def train_step(
    model: Transformer,
    optimizers: Sequence[torch.optim.Optimizer],
    batch: Batch,
    plan: StepPlan,
    micro_batch_size: int,
    clip_norm: float,
    autocast: torch.autocast,
    document_mask: bool = False,
) -> StepResult:
    """Forward, backward, clip, update weights, then the gate biases. The batch lies in the CPU's memory.

    On a CPU, raises NonFinite before anything is updated if the loss or a gradient is not finite. On a GPU
    the host does not wait for the step, and reads its result later.
    """
    counts = count_targets(batch, model.config.mtp.depth)
    model.zero_grad(set_to_none=True)
    totals = None
    with holding_weights(model), holding_casts(model, autocast):
        for micro in batch.split(micro_batch_size):
            micro = micro.to(model.head.weight.device)
            with autocast:
                losses = model.losses(micro.tokens_BS, micro.documents_BS, document_mask)
            objective(losses, counts, plan, model.config).backward()
            totals = accumulate(totals, losses)
            del losses  # whose graph has the casts
    assert totals is not None
    loss = objective(totals, counts, plan, model.config)
    grad_norm = clip_grad_norm_(model.parameters(), clip_norm)
    live = guard_update(model, optimizers, loss, grad_norm)
    set_learning_rate(optimizers, plan.lr)
    for optimizer in optimizers:
        optimizer.step()
    update_biases(model, totals.counts_LE, plan.bias_update_rate * live)
    mtp_loss = mean_mtp_loss(totals, counts) if counts.mtp_tokens else None
    return StepResult(loss, totals.main_sum / counts.main_tokens, mtp_loss, grad_norm, totals.counts_LE)


def count_targets(batch: Batch, mtp_depth: int) -> StepCounts:
    """Predictions that the batch asks for, of the main head and of each MTP depth."""
    rows, length = batch.tokens_BS.shape[0], batch.tokens_BS.shape[1] - 1
    mtp_tokens = [
        int((mtp_targets(batch.tokens_BS, batch.documents_BS, depth) != IGNORE).sum())
        for depth in range(1, mtp_depth + 1)
    ]
    return StepCounts(rows * length, mtp_tokens, rows)


def objective(losses: Losses, counts: StepCounts, plan: StepPlan, config: ModelConfig) -> Tensor:
    """L = main + lambda / D * sum of the depths' means (V3 Eq. 24-25) + alpha * balance (Eq. 17)."""
    loss = losses.main_sum / counts.main_tokens
    loss = loss + config.balance_loss_weight * losses.balance_sum / counts.rows
    if counts.mtp_tokens:
        loss = loss + plan.mtp_weight * mean_mtp_loss(losses, counts)
    return loss


def mean_mtp_loss(losses: Losses, counts: StepCounts) -> Tensor:
    """Mean over depths of each depth's mean over its own valid tokens; a depth without any gives 0."""
    means = [s / max(n, 1) for s, n in zip(losses.mtp_sums, counts.mtp_tokens, strict=True)]
    return torch.stack(means).mean()


def accumulate(totals: Losses | None, losses: Losses) -> Losses:
    """Running sums over micro-batches, without their graphs."""
    detached = Losses(
        losses.main_sum.detach(),
        [s.detach() for s in losses.mtp_sums],
        losses.balance_sum.detach(),
        losses.counts_LE,
    )
    if totals is None:
        return detached
    return Losses(
        totals.main_sum + detached.main_sum,
        [a + b for a, b in zip(totals.mtp_sums, detached.mtp_sums, strict=True)],
        totals.balance_sum + detached.balance_sum,
        totals.counts_LE + detached.counts_LE,
    )


def update_biases(model: Transformer, counts_LE: Tensor, rate: float | Tensor) -> None:
    """The bias rule on every gate, MTP's among them, from the counts of the whole step."""
    for gate, counts_E in zip(model.gates(), counts_LE, strict=True):
        if gate.bias is not None:
            update_bias(gate.bias, counts_E, rate)
