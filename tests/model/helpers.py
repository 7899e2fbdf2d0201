"""Tiny configurations and the comparison of a module with an oracle, forward and backward."""

from functools import partial
from typing import Any
from unittest import mock

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor, nn

from deepseek_mini.config import (
    Attention,
    Balance,
    GroupScore,
    ModelConfig,
    MoeConfig,
    MtpConfig,
    ScoreFunction,
)
from deepseek_mini.model.experts import RoutedExperts, _ExpertLoop, _grouped_experts
from deepseek_mini.model.transformer import Transformer
from oracles import autodiff

few = settings(deadline=None, derandomize=True, max_examples=20)
many = settings(deadline=None, derandomize=True, max_examples=60)
seeds = st.integers(0, 2**31)

MARGIN = 1e-4
"""Choices of experts closer than this are left to rounding, so such a draw is drawn again."""


def tiny(**changes: Any) -> ModelConfig:
    """A model that plain Python can follow."""
    fields: dict[str, Any] = {
        "vocab_size": 11, "dim": 4, "inter_dim": 6, "moe_inter_dim": 3, "n_layers": 2, "n_dense_layers": 1,
        "n_heads": 2, "n_routed_experts": 4, "n_shared_experts": 1, "n_activated_experts": 2,
        "n_expert_groups": 2, "n_limited_groups": 1, "q_lora_rank": 3, "kv_lora_rank": 3,
        "qk_nope_head_dim": 3, "qk_rope_head_dim": 2, "v_head_dim": 2, "max_seq_len": 16, "n_kv_heads": 1,
    }  # fmt: skip
    return ModelConfig(**(fields | changes))


def tiny_mtp(depth: int, **changes: Any) -> ModelConfig:
    return tiny(mtp=MtpConfig(depth=depth), **changes)


@st.composite
def attention_fields(draw: st.DrawFn) -> dict[str, Any]:
    n_kv_heads = draw(st.integers(1, 2))
    original = draw(st.sampled_from([8, 16, 64]))
    return {
        "attention": draw(st.sampled_from(list(Attention))),
        "dim": draw(st.integers(1, 6)),
        "n_heads": n_kv_heads * draw(st.integers(1, 2)),
        "n_kv_heads": n_kv_heads,
        "q_lora_rank": draw(st.integers(0, 4)),
        "kv_lora_rank": draw(st.integers(1, 4)),
        "qk_nope_head_dim": draw(st.integers(1, 4)),
        "qk_rope_head_dim": draw(st.sampled_from([2, 4, 6])),
        "v_head_dim": draw(st.sampled_from([2, 4, 6])),
        "original_seq_len": original,
        "max_seq_len": original * draw(st.sampled_from([1, 4])),
        "rope_theta": draw(st.sampled_from([100.0, 10000.0])),
        "beta_fast": draw(st.sampled_from([2, 32])),
        "mscale": draw(st.sampled_from([0.707, 1.0])),
    }


@st.composite
def expert_fields(draw: st.DrawFn) -> dict[str, Any]:
    n_groups = draw(st.integers(1, 4))
    size = draw(st.integers(2, 4))
    n_limited = draw(st.integers(1, n_groups))
    return {
        "n_routed_experts": n_groups * size,
        "n_expert_groups": n_groups,
        "n_limited_groups": n_limited,
        "n_activated_experts": draw(st.integers(1, min(4, n_limited * size))),
        "n_shared_experts": draw(st.integers(0, 2)),
        "moe_inter_dim": draw(st.integers(1, 4)),
        "score_func": draw(st.sampled_from(list(ScoreFunction))),
        "group_score": draw(st.sampled_from(list(GroupScore))),
        "route_scale": draw(st.sampled_from([1.0, 2.5])),
        "moe": MoeConfig(balance=draw(st.sampled_from(list(Balance)))),
    }


def fill(module: nn.Module, seed: int, std: float = 0.7) -> nn.Module:
    """Draw every parameter and every gate bias anew, large enough that all terms matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if isinstance(tensor, nn.Parameter) or name.endswith("bias"):
                centre = 1.0 if "norm" in name else 0.0
                tensor.copy_(centre + std * torch.randn(tensor.shape, generator=generator))
    return module


_compute = RoutedExperts.compute


def grouped_compute(experts: RoutedExperts, *inputs: Tensor) -> Tensor:
    """`RoutedExperts.compute` as it is on a GPU."""
    with mock.patch.object(_ExpertLoop, "apply", partial(_grouped_experts, experts.inner)):
        return _compute(experts, *inputs)


def model_with(config: ModelConfig, seed: int = 0) -> Transformer:
    """A float64 model whose every term matters."""
    model = Transformer(config).double()
    fill(model, seed)
    return model


def tokens(*shape: int, seed: int = 0) -> Tensor:
    """Random tokens of the tiny vocabulary."""
    return torch.randint(11, shape, generator=torch.Generator().manual_seed(seed))


def inputs(seed: int, *shape: int) -> Tensor:
    """Normal numbers in float64 that ask for a gradient."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


def oracle_parameters(module: nn.Module) -> dict[str, list]:
    """A module's parameters as numbers with gradients, its buffers (the gate's bias) as floats."""
    parameters = {name: autodiff.lift(p.tolist()) for name, p in module.named_parameters()}
    return parameters | {name: buffer.tolist() for name, buffer in module.named_buffers()}


def assert_close(actual: Tensor, expected: list, tolerance: float) -> None:
    """Agreement relative to the larger of 1 and the number."""
    expected_tensor = torch.tensor(autodiff.lower(expected), dtype=torch.float64)
    torch.testing.assert_close(actual.double(), expected_tensor, rtol=tolerance, atol=tolerance)


def assert_gradients_agree(module: nn.Module, parameters: dict[str, list], tolerance: float) -> None:
    for name, p in module.named_parameters():
        grad = torch.zeros_like(p) if p.grad is None else p.grad
        expected = torch.tensor(autodiff.gradients(parameters[name]), dtype=torch.float64)
        torch.testing.assert_close(
            grad.double(), expected, rtol=tolerance, atol=tolerance, msg=lambda m, name=name: f"{name}: {m}"
        )
