"""Each fast path against its plain PyTorch counterpart, forward and backward, on odd shapes."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek_mini.config import ModelConfig
from deepseek_mini.model import causal, loss
from deepseek_mini.model.causal import causal_attention, lay_out
from deepseek_mini.model.experts import RoutedExperts
from deepseek_mini.model.loss import linear_cross_entropy, score_tokens
from deepseek_mini.model.norm import RMSNorm, _fused_rms_norm
from model.helpers import grouped_compute

exact = {"rtol": 1e-9, "atol": 1e-11}


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


def plain_attention(q, k, v, scale, documents):
    """Every pair of positions, masked."""
    scores = torch.einsum("bthk,bshk->bhts", q, k) * scale
    length = q.shape[1]
    hidden = torch.ones(length, length).triu(1).bool()[None]
    if documents is not None:
        hidden = hidden | (documents[:, :, None] != documents[:, None, :])
    scores = scores.masked_fill(hidden[:, None], -torch.inf)
    return torch.einsum("bhts,bshv->bthv", scores.softmax(-1), v)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    batch=st.integers(1, 3),
    length=st.sampled_from([1, 2, 63, 64, 65, 130]),
    heads=st.integers(1, 3),
    k_dim=st.integers(1, 7),
    v_dim=st.integers(1, 7),
    with_documents=st.booleans(),
)
def test_chunked_attention_equals_plain_attention(batch, length, heads, k_dim, v_dim, with_documents):
    q, k = randn(batch, length, heads, k_dim, seed=1), randn(batch, length, heads, k_dim, seed=2)
    v, d_out = randn(batch, length, heads, v_dim, seed=3), randn(batch, length, heads, v_dim, seed=4)
    documents = (
        torch.arange(length).div(17, rounding_mode="floor").expand(batch, -1) if with_documents else None
    )
    out = causal_attention(lay_out(q, k, v), 0.3, documents).transpose(1, 2)
    expected = plain_attention(q, k, v, 0.3, documents)
    torch.testing.assert_close(out, expected, **exact)
    gradients = torch.autograd.grad(out, (q, k, v), d_out)
    for gradient, reference in zip(gradients, torch.autograd.grad(expected, (q, k, v), d_out), strict=True):
        torch.testing.assert_close(gradient, reference, **exact)


@pytest.mark.parametrize("v_dim", [3, 7, 11])
@pytest.mark.parametrize("with_documents", [False, True])
def test_attention_of_other_devices_equals_plain_attention(v_dim, with_documents):
    q, k, v = randn(2, 37, 3, 7, seed=1), randn(2, 37, 3, 7, seed=2), randn(2, 37, 3, v_dim, seed=3)
    documents = torch.arange(37).div(9, rounding_mode="floor").expand(2, -1) if with_documents else None
    heads = causal._pad(causal.Heads(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)))
    assert heads.v_BHTX.shape[-1] == max(v_dim, 7)
    out = causal._fused_attention(*heads, 0.3, documents)[..., :v_dim].transpose(1, 2)
    expected, d_out = plain_attention(q, k, v, 0.3, documents), randn(2, 37, 3, v_dim, seed=4)
    torch.testing.assert_close(out, expected, **exact)
    gradients = torch.autograd.grad(out, (q, k, v), d_out)
    for gradient, reference in zip(gradients, torch.autograd.grad(expected, (q, k, v), d_out), strict=True):
        torch.testing.assert_close(gradient, reference, **exact)


def plain_experts(experts, x, weights, chosen):
    """Token by token, expert by expert."""
    rows = []
    for token, row in enumerate(x):
        total = torch.zeros_like(row)
        for weight, e in zip(weights[token], chosen[token], strict=True):
            inner = F.silu(experts.w1[e] @ row) * (experts.w3[e] @ row)
            total = total + weight * (experts.w2[e] @ inner)
        rows.append(total)
    return torch.stack(rows)


def small_experts(n_experts: int, dim: int, inter_dim: int) -> RoutedExperts:
    config = ModelConfig(
        dim=dim,
        moe_inter_dim=inter_dim,
        n_routed_experts=n_experts,
        n_activated_experts=1,
        n_expert_groups=1,
        n_limited_groups=1,
    )
    experts = RoutedExperts(config).double()
    for i, parameter in enumerate(experts.parameters()):
        parameter.data = randn(*parameter.shape, seed=i).detach()
    return experts


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    n_tokens=st.integers(1, 33),
    n_experts=st.integers(1, 7),
    n_activated=st.integers(1, 7),
    dim=st.integers(1, 5),
    inter_dim=st.integers(1, 5),
)
def test_sorted_experts_equal_token_by_token(n_tokens, n_experts, n_activated, dim, inter_dim):
    n_activated = min(n_activated, n_experts)
    experts, x = small_experts(n_experts, dim, inter_dim), randn(n_tokens, dim)
    weights = randn(n_tokens, n_activated, seed=5)
    chosen = torch.rand(n_tokens, n_experts, generator=torch.Generator().manual_seed(n_tokens)).argsort(1)
    chosen = chosen[:, :n_activated]
    out, expected = experts(x, weights, chosen), plain_experts(experts, x, weights, chosen)
    torch.testing.assert_close(out, expected, **exact)
    leaves = (x, weights, *experts.parameters())
    gradients = torch.autograd.grad(out.square().sum(), leaves)
    for gradient, reference in zip(
        gradients, torch.autograd.grad(expected.square().sum(), leaves), strict=True
    ):
        torch.testing.assert_close(gradient, reference, **exact)


@pytest.mark.parametrize("n_tokens", [1, 23])
def test_grouped_matmul_experts_equal_token_by_token_with_empty_groups(n_tokens, monkeypatch):
    """What a GPU runs, on a CPU. Rows have 16 bytes or a multiple, as grouped products want them."""
    monkeypatch.setattr(RoutedExperts, "compute", grouped_compute)
    experts, x = small_experts(5, 4, 12).float(), randn(n_tokens, 4)
    weights, d_out = randn(n_tokens, 2, seed=5), randn(n_tokens, 4, seed=6)
    chosen = torch.tensor([[0, 3], [3, 1]]).repeat(12, 1)[:n_tokens]  # experts 2 and 4 get nothing
    out = experts(x.float(), weights.float(), chosen)
    gradients = torch.autograd.grad(out, (x, weights, *experts.parameters()), d_out.float())
    experts.double()
    expected = plain_experts(experts, x, weights, chosen)
    references = torch.autograd.grad(expected, (x, weights, *experts.parameters()), d_out)
    for number, reference in zip((out, *gradients), (expected, *references), strict=True):
        torch.testing.assert_close(number.double(), reference, rtol=1e-5, atol=1e-5)
    assert all((gradient[[2, 4]] == 0).all() for gradient in gradients[2:])


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    n_tokens=st.integers(1, 40),
    vocab=st.integers(2, 50),
    dim=st.integers(1, 6),
    chunk=st.sampled_from([1, 200, 4096]),
)
def test_chunked_cross_entropy_equals_full_logits(n_tokens, vocab, dim, chunk):
    hidden, head = randn(n_tokens, dim, seed=1), randn(vocab, dim, seed=2)
    targets = torch.randint(vocab, (n_tokens,), generator=torch.Generator().manual_seed(n_tokens))
    targets[::3] = -100
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss, "CHUNK_ELEMENTS", chunk)
        total = linear_cross_entropy(hidden, head, targets)
        per_token = score_tokens(hidden, head, targets).losses_N
    expected = F.cross_entropy(hidden @ head.T, targets, reduction="none")
    torch.testing.assert_close(per_token, expected, **exact)
    torch.testing.assert_close(total, expected.sum(), **exact)
    gradients = torch.autograd.grad(3 * total, (hidden, head))
    for gradient, reference in zip(
        gradients, torch.autograd.grad(3 * expected.sum(), (hidden, head)), strict=True
    ):
        torch.testing.assert_close(gradient, reference, **exact)


@pytest.mark.parametrize("chunk", [1, 400])
def test_cross_entropy_never_holds_more_logits_than_a_chunk_has(chunk, monkeypatch):
    hidden, head, targets = randn(500, 3, seed=1), randn(11, 3, seed=2), torch.arange(500) % 11
    held = []

    def watched(hidden, head):
        held.append(len(hidden) * len(head))
        return loss_logits(hidden, head)

    loss_logits = loss._logits
    monkeypatch.setattr(loss, "_logits", watched)
    monkeypatch.setattr(loss, "CHUNK_ELEMENTS", chunk)
    for function in (linear_cross_entropy, score_tokens):
        held.clear()
        function(hidden, head, targets)
        assert sum(held) == 500 * 11
        assert max(held) <= max(chunk, 16 * 11)


def test_the_heads_gradient_is_summed_over_chunks_in_float32(monkeypatch):
    """Each of 250 chunks adds little to a sum that BF16's 8 bits of mantissa could not take it up into."""
    monkeypatch.setattr(loss, "CHUNK_ELEMENTS", 1)
    hidden = (randn(4000, 6, seed=1).detach() + 2).bfloat16()
    head, targets = randn(11, 6, seed=2).detach().bfloat16().requires_grad_(), torch.arange(4000) % 11
    (gradient,) = torch.autograd.grad(linear_cross_entropy(hidden, head, targets), head)
    wide_head = head.detach().double().requires_grad_()
    expected = F.cross_entropy(hidden.double() @ wide_head.T, targets, reduction="sum")
    (reference,) = torch.autograd.grad(expected, wide_head)
    assert (gradient - reference).norm() < 2**-8 * reference.norm()


@pytest.mark.parametrize("shape", [(1,), (3, 5), (2, 7, 33), (2, 3, 4, 130)])
def test_norm_with_its_own_backward_equals_pytorchs(shape):
    x, d_y, norm = randn(*shape, seed=1), randn(*shape, seed=2), RMSNorm(shape[-1]).double()
    torch.nn.init.normal_(norm.weight)
    expected = _fused_rms_norm(x, norm.weight)
    torch.testing.assert_close(norm(x), expected, **exact)
    gradients = torch.autograd.grad(norm(x), (x, norm.weight), d_y)
    for gradient, reference in zip(
        gradients, torch.autograd.grad(expected, (x, norm.weight), d_y), strict=True
    ):
        torch.testing.assert_close(gradient, reference, **exact)


def test_norm_of_a_transposed_tensor_equals_pytorchs():
    x, d_y, norm = randn(5, 6, 8, seed=1), randn(6, 5, 8, seed=2), RMSNorm(8).double()
    (gradient,) = torch.autograd.grad(norm(x.transpose(0, 1)), x, d_y)
    (reference,) = torch.autograd.grad(_fused_rms_norm(x.transpose(0, 1), norm.weight), x, d_y)
    torch.testing.assert_close(gradient, reference, **exact)
