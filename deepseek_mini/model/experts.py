"""SwiGLU layers: the dense MLP, and the routed experts with their tokens sorted by expert.

Legend: N tokens, K experts per token, S = N * K assignments in expert order, E experts, C assignments
of one expert, D model width, I inner width.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepseek_mini.config import ModelConfig
from deepseek_mini.model.dtype import Cast, compute_dtype
from deepseek_mini.model.router import count_assignments


class Mlp(nn.Module):
    """w2(silu(w1 x) * w3 x)."""

    def __init__(self, dim: int, inter_dim: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(dim, inter_dim, bias=False)
        self.w2 = nn.Linear(inter_dim, dim, bias=False)
        self.w3 = nn.Linear(dim, inter_dim, bias=False)
        self.cast = Cast()

    def forward(self, x: Tensor) -> Tensor:
        x = self.cast(x)
        return self.w2(self.inner(self.w1(x), self.w3(x)))

    def inner(self, gate: Tensor, up: Tensor) -> Tensor:
        """The inner activations, which w2 projects back."""
        return F.silu(gate) * up


class RoutedExperts(nn.Module):
    """All experts of a layer as three stacks; every assignment is computed, none is dropped."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        n_experts, inter_dim, dim = config.n_routed_experts, config.moe_inter_dim, config.dim
        self.w1 = nn.Parameter(torch.empty(n_experts, inter_dim, dim))
        self.w2 = nn.Parameter(torch.empty(n_experts, dim, inter_dim))
        self.w3 = nn.Parameter(torch.empty(n_experts, inter_dim, dim))

    def forward(self, x_ND: Tensor, weights_NK: Tensor, experts_NK: Tensor) -> Tensor:
        """Sum over each token's experts of weight * expert(x): `[N, D]` in the dtype of the products."""
        plan = plan_dispatch(experts_NK, len(self.w1))
        dtype = compute_dtype(x_ND)
        x_SD = _Dispatch.apply(x_ND.to(dtype), plan)
        weights_S1 = weights_NK.flatten().index_select(0, plan.order_S).unsqueeze(1).to(dtype)
        return _Combine.apply(self.compute(x_SD, weights_S1, plan.counts_E), plan)

    def compute(self, x_SD: Tensor, weights_S1: Tensor, counts_E: Tensor) -> Tensor:
        """weight * expert(x) of assignments in expert order."""
        stacks = (self.w1.to(x_SD.dtype), self.w2.to(x_SD.dtype), self.w3.to(x_SD.dtype))
        compute = _ExpertLoop.apply if x_SD.device.type == "cpu" else partial(_grouped_experts, self.inner)
        return compute(x_SD, weights_S1, *stacks, counts_E)

    def inner(self, gate_SI: Tensor, up_SI: Tensor, weights_S1: Tensor) -> Tensor:
        """The inner activations, which the gate weights multiply: the same as weighting the outputs."""
        return F.silu(gate_SI) * up_SI * weights_S1


class DispatchPlan(NamedTuple):
    """The permutation between token order and expert order, and the tokens per expert."""

    order_S: Tensor
    """Assignment (token * K + rank) in each place of the expert order."""
    place_S: Tensor
    """Place in the expert order of each assignment: the inverse of `order_S`."""
    counts_E: Tensor
    n_activated: int


def plan_dispatch(experts_NK: Tensor, n_experts: int) -> DispatchPlan:
    """Sort the assignments by expert, keeping token order within an expert."""
    experts_S = experts_NK.flatten()
    order_S = experts_S.argsort(stable=True)
    places_S = torch.arange(len(order_S), device=order_S.device)
    place_S = torch.empty_like(order_S).scatter_(0, order_S, places_S)
    return DispatchPlan(order_S, place_S, count_assignments(experts_S, n_experts), experts_NK.shape[1])


class _Dispatch(torch.autograd.Function):
    """Copy each token to its places in expert order. Forward and backward gather: nothing is scattered."""

    @staticmethod
    def forward(ctx, x_ND, plan):
        ctx.plan = plan
        return x_ND.index_select(0, plan.order_S // plan.n_activated)

    @staticmethod
    def backward(ctx, d_x_SD):
        return sum_places(d_x_SD, ctx.plan), None


class _Combine(torch.autograd.Function):
    """Sum each token's places: the transpose of `_Dispatch`."""

    @staticmethod
    def forward(ctx, y_SD, plan):
        ctx.plan = plan
        return sum_places(y_SD, plan)

    @staticmethod
    def backward(ctx, d_y_ND):
        return d_y_ND.index_select(0, ctx.plan.order_S // ctx.plan.n_activated), None


def sum_places(y_SD: Tensor, plan: DispatchPlan) -> Tensor:
    """Sum over each token's assignments, `[N, D]`, gathered and added in one pass."""
    return F.embedding_bag(plan.place_S.unflatten(0, (-1, plan.n_activated)), y_SD, mode="sum")


def _grouped_experts(inner, x_SD, weights_S1, w1_EID, w2_EDI, w3_EID, counts_E):
    """One grouped matmul per stack; group sizes stay on the device."""
    ends_E = counts_E.cumsum(0).to(torch.int32)
    gate_SI = F.grouped_mm(x_SD, w1_EID.mT, offs=ends_E)
    up_SI = F.grouped_mm(x_SD, w3_EID.mT, offs=ends_E)
    return F.grouped_mm(inner(gate_SI, up_SI, weights_S1), w2_EDI.mT, offs=ends_E)


class _ExpertLoop(torch.autograd.Function):
    """The experts one after the other, written straight into the results: the fast way on a CPU."""

    @staticmethod
    def forward(ctx, x_SD, weights_S1, w1_EID, w2_EDI, w3_EID, counts_E):
        gate_SI = x_SD.new_empty(len(x_SD), w1_EID.shape[1])
        up_SI, y_SD = torch.empty_like(gate_SI), torch.empty_like(x_SD)
        ctx.counts = counts_E.tolist()
        rows = (x_SD, weights_S1, gate_SI, up_SI, y_SD)
        for x_CD, weights_C1, gate_CI, up_CI, y_CD, w1_ID, w2_DI, w3_ID in _each_expert(
            ctx.counts, rows, (w1_EID, w2_EDI, w3_EID)
        ):
            torch.mm(x_CD, w1_ID.T, out=gate_CI)
            torch.mm(x_CD, w3_ID.T, out=up_CI)
            torch.mm(F.silu(gate_CI).mul_(up_CI).mul_(weights_C1), w2_DI.T, out=y_CD)
        ctx.save_for_backward(x_SD, weights_S1, w1_EID, w2_EDI, w3_EID, gate_SI, up_SI)
        return y_SD

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d_y_SD):
        x_SD, weights_S1, w1_EID, w2_EDI, w3_EID, gate_SI, up_SI = ctx.saved_tensors
        d_x_SD, d_weights_S1 = torch.empty_like(x_SD), torch.empty_like(weights_S1)
        d_w1, d_w2, d_w3 = torch.zeros_like(w1_EID), torch.zeros_like(w2_EDI), torch.zeros_like(w3_EID)
        rows = (x_SD, weights_S1, gate_SI, up_SI, d_y_SD, d_x_SD, d_weights_S1)
        stacks = (w1_EID, w2_EDI, w3_EID, d_w1, d_w2, d_w3)
        for x_CD, weights_C1, gate_CI, up_CI, d_y_CD, d_x_CD, d_weights_C1, *matrices in _each_expert(
            ctx.counts, rows, stacks
        ):
            w1_ID, w2_DI, w3_ID, d_w1_ID, d_w2_DI, d_w3_ID = matrices
            sigmoid_CI = torch.sigmoid(gate_CI)
            silu_CI = sigmoid_CI * gate_CI
            inner_CI = silu_CI * up_CI
            torch.mm(d_y_CD.T, inner_CI * weights_C1, out=d_w2_DI)
            d_inner_CI = d_y_CD @ w2_DI
            torch.sum(d_inner_CI * inner_CI, 1, keepdim=True, out=d_weights_C1)
            d_inner_CI *= weights_C1
            d_up_CI = d_inner_CI * silu_CI
            slope_CI = silu_CI.neg_().add_(gate_CI).add_(1).mul_(sigmoid_CI)
            d_gate_CI = d_inner_CI.mul_(up_CI).mul_(slope_CI)
            torch.mm(d_gate_CI.T, x_CD, out=d_w1_ID)
            torch.mm(d_up_CI.T, x_CD, out=d_w3_ID)
            torch.mm(d_gate_CI, w1_ID, out=d_x_CD)
            d_x_CD.addmm_(d_up_CI, w3_ID)
        return d_x_SD, d_weights_S1, d_w1, d_w2, d_w3, None


def _each_expert(
    counts: list[int], rows: Sequence[Tensor], stacks: Sequence[Tensor]
) -> Iterator[tuple[Tensor, ...]]:
    """For every expert with assignments: its rows of the sorted tensors, then its matrices of the stacks."""
    rows_of_each = zip(*(tensor.split(counts) for tensor in rows), strict=True)
    matrices_of_each = zip(*(stack.unbind(0) for stack in stacks), strict=True)
    for count, own_rows, matrices in zip(counts, rows_of_each, matrices_of_each, strict=True):
        if count:
            yield *own_rows, *matrices
