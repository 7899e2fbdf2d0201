import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from deepseek_mini.config import Attention, MtpConfig
from deepseek_mini.model.transformer import Losses, Transformer, build_model
from model.helpers import (
    MARGIN,
    assert_close,
    assert_gradients_agree,
    attention_fields,
    expert_fields,
    few,
    fill,
    model_with,
    oracle_parameters,
    seeds,
    tiny,
    tokens,
)
from oracles import autodiff
from oracles import transformer as oracle


def total(losses: Losses) -> Tensor:
    return losses.main_sum + 0.3 * sum(losses.mtp_sums) + 0.2 * losses.balance_sum


@few
@given(
    attention_fields(), expert_fields(), st.integers(0, 2),
    st.lists(st.integers(0, 1), min_size=4, max_size=4), st.booleans(), seeds,
)  # fmt: skip
def test_losses_and_gradients_of_the_whole_model_agree_with_oracle(
    attention: dict, experts: dict, depth: int, boundaries: list[int], document_mask: bool, seed: int
) -> None:
    config = tiny(**attention, **experts, n_layers=2, n_dense_layers=1, mtp=MtpConfig(depth=depth))
    model = model_with(config, seed)
    words = tokens(1, 5, seed=seed)
    documents_BS = torch.tensor([[0, *boundaries]]).cumsum(1)
    parameters = oracle_parameters(model)
    expected = oracle.losses(parameters, words[0].tolist(), documents_BS[0].tolist(), config, document_mask)
    assume(expected.tally.margin > MARGIN)

    losses = model.losses(words, documents_BS, document_mask)
    assert_close(losses.main_sum, expected.main, 1e-5)
    assert_close(torch.stack([*losses.mtp_sums, losses.main_sum]), [*expected.mtp, expected.main], 1e-5)
    assert_close(losses.balance_sum, sum(expected.tally.balance_losses), 1e-5)
    assert losses.counts_LE.tolist() == expected.tally.counts

    total(losses).backward()
    balance = sum(expected.tally.balance_losses)
    autodiff.backward(expected.main + 0.3 * sum(expected.mtp) + 0.2 * balance)
    assert_gradients_agree(model, parameters, 1e-4)


@pytest.mark.parametrize("masked", [False, True])
def test_logits_agree_with_oracle(masked: bool) -> None:
    config = tiny(n_layers=3)
    model, words = model_with(config), tokens(2, 5)
    documents_BT = torch.tensor([[0, 0, 1, 1, 2], [0, 0, 0, 0, 0]]) if masked else None
    parameters = {name: p.tolist() for name, p in model.state_dict().items()}
    expected = [
        oracle.logits(parameters, row, config, documents_BT[b].tolist() if masked else None)
        for b, row in enumerate(words.tolist())
    ]
    assert_close(model(words, documents_BT), expected, 1e-6)


@pytest.mark.parametrize("kind", Attention)
def test_future_tokens_do_not_change_past_logits(kind: Attention) -> None:
    model, words = model_with(tiny(attention=kind)), tokens(2, 12)
    changed = words.clone()
    changed[:, 7:] = (words[:, 7:] + 1) % 11
    before, after = model(words), model(changed)
    torch.testing.assert_close(before[:, :7], after[:, :7], rtol=0, atol=1e-9)
    assert not torch.allclose(before[:, 7:], after[:, 7:])


def test_rows_do_not_influence_each_other() -> None:
    model, words = model_with(tiny(mtp=MtpConfig(depth=2))), tokens(4, 9)
    documents_BS = torch.tensor([[0, 0, 0, 1, 1, 1, 2, 2, 2]]).expand(4, 9)
    torch.testing.assert_close(model(words), torch.cat([model(row[None]) for row in words]))
    whole = model.losses(words, documents_BS)
    parts = [model.losses(words[b : b + 1], documents_BS[b : b + 1]) for b in range(4)]
    torch.testing.assert_close(whole.main_sum, sum(p.main_sum for p in parts))
    torch.testing.assert_close(whole.balance_sum, sum(p.balance_sum for p in parts))
    for k in range(2):
        torch.testing.assert_close(whole.mtp_sums[k], sum(p.mtp_sums[k] for p in parts))
    assert torch.equal(whole.counts_LE, sum(p.counts_LE for p in parts))


def test_with_the_document_mask_a_document_does_not_change_another() -> None:
    model, words = model_with(tiny(mtp=MtpConfig(depth=1))), tokens(1, 10)
    documents_BT = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1, 1, 1]])
    changed = words.clone()
    changed[:, :4] = (words[:, :4] + 1) % 11
    before, after = (model(w, documents_BT)[:, 4:] for w in (words, changed))
    torch.testing.assert_close(before, after, rtol=0, atol=1e-9)
    unmasked = model(changed)[:, 4:]
    assert not torch.allclose(after, unmasked)


def test_losses_mask_documents_only_when_asked() -> None:
    """Then the losses of a row are those of its documents apart, but for the label across the border."""
    model, words = model_with(tiny(mtp=MtpConfig(depth=1))), tokens(1, 10)
    documents_BS = torch.tensor([[0, 0, 0, 0, 0, 1, 1, 1, 1, 1]])
    masked = model.losses(words, documents_BS, document_mask=True)
    apart = [model.losses(w, torch.zeros_like(w)) for w in words.split(5, 1)]
    across = model(words[:, :5])[0, 4].log_softmax(-1)[words[0, 5]]
    torch.testing.assert_close(masked.mtp_sums[0], sum(p.mtp_sums[0] for p in apart), rtol=1e-6, atol=1e-6)
    expected = sum(p.main_sum for p in apart) - across
    torch.testing.assert_close(masked.main_sum, expected, rtol=1e-6, atol=1e-6, check_dtype=False)
    unmasked = model.losses(words, documents_BS)
    assert not torch.allclose(unmasked.main_sum, masked.main_sum)
    assert not torch.allclose(unmasked.mtp_sums[0], masked.mtp_sums[0])


def test_every_parameter_gets_a_gradient_even_if_no_token_reaches_it() -> None:
    model = model_with(tiny(n_routed_experts=16, n_expert_groups=4, mtp=MtpConfig(depth=1)))
    losses = model.losses(tokens(1, 3), torch.zeros(1, 3, dtype=torch.int64))
    assert (losses.counts_LE == 0).any()
    total(losses).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_bf16_autocast_keeps_float32_losses_gradients_and_routing_scores() -> None:
    config = tiny(dim=32, n_layers=3, vocab_size=64, mtp=MtpConfig(depth=1))
    model = build_model(config, torch.device("cpu"), seed=0)
    fill(model, 0, std=0.1)
    words, documents_BS = tokens(4, 33), torch.zeros(4, 33, dtype=torch.int64)
    exact = model.losses(words, documents_BS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model.losses(words, documents_BS)
        assert model(words).dtype == torch.float32
    for a, b in ((losses.main_sum, exact.main_sum), (losses.mtp_sums[0], exact.mtp_sums[0])):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=5e-3, atol=0)
    total(losses).backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())
    assert losses.counts_LE.sum(1).tolist() == exact.counts_LE.sum(1).tolist()


def test_a_cast_model_keeps_float32_gate_biases_in_its_state() -> None:
    model = Transformer(tiny(mtp=MtpConfig(depth=1)))
    fill(model, 0)
    before = {name: p.clone() for name, p in model.state_dict().items() if name.endswith("gate.bias")}
    assert len(before) == 2
    model.to(torch.bfloat16)
    state = model.state_dict()
    assert all(
        state[name].dtype == torch.float32 and torch.equal(state[name], b) for name, b in before.items()
    )
    assert not any(name.endswith("bias") for name, _ in model.named_parameters())


def test_a_model_of_dense_layers_reports_no_experts() -> None:
    model = model_with(tiny(n_dense_layers=2, mtp=MtpConfig(depth=0)))
    losses = model.losses(tokens(1, 5), torch.zeros(1, 5, dtype=torch.int64))
    assert losses.counts_LE.shape[0] == 0
    assert losses.balance_sum == 0
    total(losses).backward()
