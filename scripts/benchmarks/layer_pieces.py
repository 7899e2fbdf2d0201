"""One GPU's share of a transformer layer, in pieces that can be timed, from the model's own modules.

Legend: B rows, T positions, D model width, S rows that arrive at the experts here, E experts here, O and I
widths of a product's output and input.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.timing import Work
from deepseek_mini.config import ModelConfig
from deepseek_mini.cost.shape import shape_of
from deepseek_mini.model.attention import build_attention
from deepseek_mini.model.causal import Heads, causal_attention, lay_out
from deepseek_mini.model.experts import Mlp, RoutedExperts
from deepseek_mini.model.norm import RMSNorm
from deepseek_mini.model.rope import rotation_table
from deepseek_mini.model.router import Gate

WORKS = ("forward", "input_grad", "weight_grad")

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True, slots=True)
class Share:
    """What one GPU has of a layer."""

    config: ModelConfig
    rows: int
    """Sequences of a micro-batch."""
    length: int
    """Tokens of a sequence."""
    expert_parallel: int
    """GPUs that the experts are spread over."""

    @property
    def tokens(self) -> int:
        return self.rows * self.length

    @property
    def n_local_experts(self) -> int:
        return self.config.n_routed_experts // self.expert_parallel

    @property
    def counts(self) -> list[int]:
        """Rows that arrive at each expert here: of all GPUs' tokens, evenly."""
        whole, rest = divmod(self.tokens * self.config.n_activated_experts, self.n_local_experts)
        return [whole + (expert < rest) for expert in range(self.n_local_experts)]


class Piece(NamedTuple):
    """A part of a layer with its residual, what it is called with, and what is timed alone."""

    module: nn.Module
    inputs: list[Tensor]
    products: dict[str, list[Work]]
    """The products with weights, by work."""
    core: tuple[Callable[..., Tensor], list[Tensor]] | None
    """Attention's own kernel and its inputs."""


class Passes:
    """A forward pass, and the backward pass to all inputs and parameters that has to follow it."""

    def __init__(self, function: Callable[..., Tensor | tuple[Tensor, ...]], inputs: list[Tensor]) -> None:
        self.function, self.inputs = function, inputs
        weights = list(function.parameters()) if isinstance(function, nn.Module) else []
        self.sources = [*inputs, *weights]
        self.outputs: tuple[Tensor, ...] = ()
        self.d_outputs: list[Tensor] = []

    def forward(self) -> None:
        outputs = self.function(*self.inputs)
        self.outputs = (outputs,) if isinstance(outputs, Tensor) else outputs

    def backward(self) -> None:
        if not self.d_outputs:
            self.d_outputs = [torch.randn_like(y) for y in self.outputs]
        torch.autograd.grad(self.outputs, self.sources, self.d_outputs)
        self.outputs = ()


class AttentionPiece(nn.Module):
    """x + attention(norm(x))."""

    def __init__(self, share: Share) -> None:
        super().__init__()
        self.share = share
        self.norm = RMSNorm(share.config.dim)
        self.attn = build_attention(share.config)

    def forward(self, x_BTD: Tensor) -> Tensor:
        rotation = rotation_table(self.share.config, self.attn.rope_dim, self.share.length, x_BTD.device)
        return x_BTD + self.attn(self.norm(x_BTD), *rotation)


class MoePiece(nn.Module):
    """x + shared(norm(x)), the gate, and the experts here on the rows that arrive at them."""

    def __init__(self, share: Share) -> None:
        super().__init__()
        config = share.config
        self.norm = RMSNorm(config.dim)
        self.gate = Gate(config)
        self.experts = RoutedExperts(replace_experts(config, share.n_local_experts))
        shared_dim = config.n_shared_experts * config.moe_inter_dim
        self.shared_experts = Mlp(config.dim, shared_dim) if shared_dim else nn.Identity()
        self.experts_S1 = torch.empty(0)

    def forward(self, x_BTD: Tensor, arrived_SD: Tensor) -> tuple[Tensor, Tensor]:
        h_BTD = self.norm(x_BTD)
        weights_S1 = self.gate(h_BTD.flatten(0, 1)).weights_NK.view(-1, 1)
        return x_BTD + self.shared_experts(h_BTD), self.experts(arrived_SD, weights_S1, self.experts_S1)


class DensePiece(nn.Module):
    """x + mlp(norm(x))."""

    def __init__(self, share: Share) -> None:
        super().__init__()
        self.norm = RMSNorm(share.config.dim)
        self.mlp = Mlp(share.config.dim, share.config.inter_dim)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return x_BTD + self.mlp(self.norm(x_BTD))


Build = Callable[[Share, torch.device, torch.dtype], Piece]


def build_pieces(config: ModelConfig) -> Iterator[tuple[str, Build]]:
    """Name and maker of each piece; made one after the other, since a large layer fills the memory."""
    yield "attention", attention_piece
    yield "mlp", moe_piece
    if config.n_dense_layers:
        yield "dense", dense_piece


def attention_piece(share: Share, device: torch.device, dtype: torch.dtype) -> Piece:
    module = _materialise(AttentionPiece, share, device, dtype)
    scale = module.attn.scale
    return Piece(
        module,
        [_leaf(share.rows, share.length, share.config.dim, device=device, dtype=dtype)],
        linear_products(module, share.tokens),
        (lambda *heads: causal_attention(Heads(*heads), scale), random_heads(share, device, dtype)),
    )


def moe_piece(share: Share, device: torch.device, dtype: torch.dtype) -> Piece:
    module = _materialise(MoePiece, share, device, dtype)
    module.experts_S1 = arriving_experts(share).to(device)
    x_BTD = _leaf(share.rows, share.length, share.config.dim, device=device, dtype=dtype)
    arrived_SD = _leaf(sum(share.counts), share.config.dim, device=device, dtype=dtype)
    products = linear_products(module, share.tokens)
    for stack in (module.experts.w1, module.experts.w2, module.experts.w3):
        for work, product in stack_products(stack.detach(), share.counts).items():
            products[work].append(product)
    return Piece(module, [x_BTD, arrived_SD], products, None)


def arriving_experts(share: Share) -> Tensor:
    """The expert of each arriving row, int64 `[S, 1]`, in mixed order."""
    experts_S = torch.arange(share.n_local_experts).repeat_interleave(torch.tensor(share.counts))
    order_S = torch.randperm(len(experts_S), generator=torch.Generator().manual_seed(0))
    return experts_S[order_S].unsqueeze(1)


def dense_piece(share: Share, device: torch.device, dtype: torch.dtype) -> Piece:
    module = _materialise(DensePiece, share, device, dtype)
    x_BTD = _leaf(share.rows, share.length, share.config.dim, device=device, dtype=dtype)
    return Piece(module, [x_BTD], linear_products(module, share.tokens), None)


def random_heads(share: Share, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """Queries, keys and values as the kernel reads them."""
    shape = shape_of(share.config)
    sizes = share.rows, share.length, shape.n_heads
    widths = shape.key_width, shape.key_width, shape.value_width
    heads = lay_out(*(torch.randn(*sizes, width, device=device, dtype=dtype) for width in widths))
    return [x.detach().requires_grad_() for x in heads]


def linear_products(module: nn.Module, n_tokens: int) -> dict[str, list[Work]]:
    """Y = X W^T, dX = dY W and dW = dY^T X of each linear layer."""
    products: dict[str, list[Work]] = {work: [] for work in WORKS}
    for linear in module.modules():
        if isinstance(linear, nn.Linear):
            weight = linear.weight.detach()
            x = torch.randn(n_tokens, linear.in_features, device=weight.device, dtype=weight.dtype)
            d_y = torch.randn(n_tokens, linear.out_features, device=weight.device, dtype=weight.dtype)
            products["forward"].append(lambda x=x, w=weight: x @ w.T)
            products["input_grad"].append(lambda d_y=d_y, w=weight: d_y @ w)
            products["weight_grad"].append(lambda d_y=d_y, x=x: d_y.T @ x)
    return products


def stack_products(stack_EOI: Tensor, counts: Sequence[int]) -> dict[str, Work]:
    """The same of a stack of experts, with so many rows for each, in the way that their device multiplies."""
    _, n_out, n_in = stack_EOI.shape
    options = {"device": stack_EOI.device, "dtype": stack_EOI.dtype}
    x_SI, d_y_SO = torch.randn(sum(counts), n_in, **options), torch.randn(sum(counts), n_out, **options)
    multiply = looped_products if stack_EOI.device.type == "cpu" else grouped_products
    return multiply(stack_EOI, x_SI, d_y_SO, counts)


def looped_products(
    stack_EOI: Tensor, x_SI: Tensor, d_y_SO: Tensor, counts: Sequence[int]
) -> dict[str, Work]:
    """Expert after expert."""
    rows = list(zip(x_SI.split(list(counts)), d_y_SO.split(list(counts)), stack_EOI, strict=True))
    return {
        "forward": lambda: [x @ w.T for x, _, w in rows],
        "input_grad": lambda: [d_y @ w for _, d_y, w in rows],
        "weight_grad": lambda: [d_y.T @ x for x, d_y, _ in rows],
    }


def grouped_products(
    stack_EOI: Tensor, x_SI: Tensor, d_y_SO: Tensor, counts: Sequence[int]
) -> dict[str, Work]:
    """All experts in one grouped product."""
    ends_E = torch.tensor(counts, device=stack_EOI.device).cumsum(0).to(torch.int32)
    return {
        "forward": lambda: F.grouped_mm(x_SI, stack_EOI.mT, offs=ends_E),
        "input_grad": lambda: F.grouped_mm(d_y_SO, stack_EOI, offs=ends_E),
        "weight_grad": lambda: F.grouped_mm(d_y_SO.mT, x_SI, offs=ends_E),
    }


def replace_experts(config: ModelConfig, n_experts: int) -> ModelConfig:
    """The config of so many experts in one group, which only the experts' own stacks are made from."""
    n_activated = min(config.n_activated_experts, n_experts)
    groups = {"n_expert_groups": 1, "n_limited_groups": 1}
    return replace(config, n_routed_experts=n_experts, n_activated_experts=n_activated, **groups)


def _materialise(kind: Callable[[Share], M], share: Share, device: torch.device, dtype: torch.dtype) -> M:
    """The module on the device with random weights: what they are does not change what they take."""
    with torch.device("meta"):
        module = kind(share)
    module.to(dtype).to_empty(device=device)
    for tensor in (*module.parameters(), *module.buffers()):
        nn.init.normal_(tensor, std=share.config.init_std)
    return module


def _leaf(*shape: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, device=device, dtype=dtype, requires_grad=True)
