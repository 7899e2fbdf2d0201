from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from model.helpers import inputs
from torch import Tensor

from deepseek_mini.model import causal
from deepseek_mini.model.causal import causal_attention

T = 2 * causal.CHUNK + 22
"""Three chunks, the last one cut short."""


def reference(q: Tensor, k: Tensor, v: Tensor, scale: float, documents_BT: Tensor | None) -> Tensor:
    """PyTorch's attention with a plain mask."""
    mask = torch.ones(q.shape[1], q.shape[1], dtype=torch.bool).tril()[None, None]
    if documents_BT is not None:
        mask = mask & (documents_BT[:, None, :, None] == documents_BT[:, None, None, :])
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale).transpose(1, 2)


def documents(n_rows: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return (torch.rand(n_rows, T, generator=generator) < 0.03).cumsum(1)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("value_width", [3, 5, 7])
@pytest.mark.parametrize("device_path", ["cpu", "fused"])
def test_attention_over_many_chunks_agrees_with_pytorch(
    masked: bool, value_width: int, device_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both ways to compute it, forward and backward, with values narrower and wider than keys."""
    if device_path == "fused":
        monkeypatch.setattr(causal._ChunkedAttention, "apply", lambda *args: causal._fused_attention(*args))
    documents_BT = documents(2) if masked else None
    shapes = [(2, T, 2, 5), (2, T, 2, 5), (2, T, 2, value_width)]
    ours, theirs = ([inputs(i, *shape) for i, shape in enumerate(shapes)] for _ in range(2))
    out, expected = causal_attention(*ours, 0.7, documents_BT), reference(*theirs, 0.7, documents_BT)
    torch.testing.assert_close(out, expected)
    weight = inputs(9, *out.shape).detach()
    (out * weight).sum().backward()
    (expected * weight).sum().backward()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_scores_beyond_the_range_of_exp_stay_finite() -> None:
    q, k, v = (inputs(i, 1, T, 1, 4).detach() * 50 for i in range(3))
    out = causal_attention(q, k, v, 1.0)
    assert out.isfinite().all()
    torch.testing.assert_close(out, reference(q, k, v, 1.0, None))


def test_bf16_attention_is_as_exact_as_pytorchs() -> None:
    """Scores, log-sum-exp and the sums over tokens must not be rounded to eight bits."""

    def errors(attend: Callable[..., Tensor]) -> list[float]:
        exact = [
            inputs(i, 1, T, 2, 16).detach().mul(2).bfloat16().double().requires_grad_() for i in range(3)
        ]
        rounded = [x.detach().bfloat16().requires_grad_() for x in exact]
        weight = inputs(9, 1, T, 2, 16).detach().bfloat16()
        expected, out = reference(*exact, 0.5, None), attend(*rounded, 0.5, None)
        (expected * weight).sum().backward()
        (out * weight).sum().backward()
        pairs = [(out, expected), *((a.grad, b.grad) for a, b in zip(rounded, exact, strict=True))]
        return [((a.double() - b).norm() / b.norm()).item() for a, b in pairs]

    for ours, theirs in zip(errors(causal_attention), errors(reference), strict=True):
        assert ours < 2 * theirs
