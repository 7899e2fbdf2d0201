from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from deepseek_mini.model import causal
from deepseek_mini.model.causal import causal_attention, lay_out
from model.helpers import inputs

T = 2 * causal.CHUNK + 22
"""Three chunks, the last one cut short."""


def reference(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """PyTorch's attention."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale).transpose(1, 2)


def ours(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    return causal_attention(lay_out(q, k, v), scale).transpose(1, 2).to(q.dtype)


def test_scores_beyond_the_range_of_exp_stay_finite() -> None:
    q, k, v = (inputs(i, 1, T, 1, 4).detach() * 50 for i in range(3))
    out = ours(q, k, v, 1.0)
    assert out.isfinite().all()
    torch.testing.assert_close(out, reference(q, k, v, 1.0))


def test_bf16_attention_is_as_exact_as_pytorchs() -> None:
    """Scores, log-sum-exp and the sums over tokens must not be rounded to eight bits."""

    def errors(attend: Callable[..., Tensor]) -> list[float]:
        exact = [
            inputs(i, 1, T, 2, 16).detach().mul(2).bfloat16().double().requires_grad_() for i in range(3)
        ]
        rounded = [x.detach().bfloat16().requires_grad_() for x in exact]
        weight = inputs(9, 1, T, 2, 16).detach().bfloat16()
        expected, out = reference(*exact, 0.5), attend(*rounded, 0.5)
        (expected * weight).sum().backward()
        (out * weight).sum().backward()
        pairs = [(out, expected), *((a.grad, b.grad) for a, b in zip(rounded, exact, strict=True))]
        return [((a.double() - b).norm() / b.norm()).item() for a, b in pairs]

    for our_error, their_error in zip(errors(ours), errors(reference), strict=True):
        assert our_error < 2 * their_error
