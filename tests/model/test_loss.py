import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from deepseek_mini.model.loss import linear_cross_entropy
from deepseek_mini.model.mtp import IGNORE
from model.helpers import assert_close, inputs, many, seeds
from oracles import autodiff, layers


@many
@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 6), seeds)
def test_head_loss_agrees_with_oracle_forward_and_backward(n: int, dim: int, vocab: int, seed: int) -> None:
    hidden_ND, head_VD = inputs(seed, n, dim), inputs(seed + 1, vocab, dim)
    targets = torch.randint(vocab, (n,), generator=torch.Generator().manual_seed(seed)).tolist()
    targets[::3] = [IGNORE] * len(targets[::3])
    total = linear_cross_entropy(hidden_ND, head_VD, torch.tensor(targets))
    (total * 0.3).backward()

    hidden, head = autodiff.lift(hidden_ND.tolist()), autodiff.lift(head_VD.tolist())
    expected = autodiff.Value(0.0)
    for x, target in zip(hidden, targets, strict=True):
        if target != IGNORE:
            expected = expected + layers.cross_entropy(layers.linear(head, x), target)
    autodiff.backward(expected * 0.3)
    assert_close(total, expected, 1e-9)
    assert_close(hidden_ND.grad, autodiff.gradients(hidden), 1e-9)
    assert_close(head_VD.grad, autodiff.gradients(head), 1e-9)


def test_rows_without_a_target_have_zero_loss_and_gradient() -> None:
    hidden_ND, head_VD = inputs(0, 4, 3), inputs(1, 5, 3)
    total = linear_cross_entropy(hidden_ND, head_VD, torch.full((4,), IGNORE))
    total.backward()
    assert total == 0
    assert (hidden_ND.grad == 0).all()
    assert (head_VD.grad == 0).all()


def test_loss_of_bf16_logits_is_summed_in_float32() -> None:
    hidden_ND, head_VD = (
        inputs(i, *shape).detach().bfloat16() for i, shape in enumerate([(4000, 8), (11, 8)])
    )
    total = linear_cross_entropy(hidden_ND, head_VD, torch.zeros(4000, dtype=torch.int64))
    assert total.dtype == torch.float32
    exact = F.cross_entropy(
        hidden_ND.double() @ head_VD.double().T, torch.zeros(4000, dtype=torch.int64), reduction="sum"
    )
    torch.testing.assert_close(total.double(), exact, rtol=1e-3, atol=0)


def test_loss_without_gradients_is_the_same() -> None:
    hidden_ND, head_VD, targets_N = inputs(0, 4, 3), inputs(1, 5, 3), torch.tensor([1, 2, 3, 4])
    with torch.no_grad():
        silent = linear_cross_entropy(hidden_ND, head_VD, targets_N)
    assert not silent.requires_grad
    assert torch.equal(silent, linear_cross_entropy(hidden_ND, head_VD, targets_N).detach())
