import torch
from hypothesis import given
from hypothesis import strategies as st

from deepseek_mini.model.mtp import IGNORE, MtpModule, mtp_targets
from deepseek_mini.model.transformer import Transformer
from model.helpers import fill, inputs, many, model_with, tiny, tiny_mtp, tokens


@many
@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(1, 3))
def test_labels_are_the_token_after_next_of_the_same_document(lengths: list[int], depth: int) -> None:
    documents = [d for d, n in enumerate(lengths) for _ in range(n)] + [len(lengths)] * (depth + 1)
    words = list(range(100, 100 + len(documents)))
    labels = mtp_targets(torch.tensor([words]), torch.tensor([documents]), depth)
    expected = [
        words[i + depth + 1] if documents[i + depth + 1] == documents[i] else IGNORE
        for i in range(len(words) - 1 - depth)
    ]
    assert labels.tolist() == [expected]


def test_projection_takes_the_embedding_first_as_released() -> None:
    module = fill(MtpModule(tiny(dim=3)).double(), 0)
    embedding_BUD, hidden_BUD = inputs(1, 1, 2, 3), inputs(2, 1, 2, 3)
    with torch.no_grad():
        module.eh_proj.weight.copy_(torch.cat([torch.eye(3), torch.zeros(3, 3)], 1))
        torch.testing.assert_close(module.combine(embedding_BUD, hidden_BUD), module.enorm(embedding_BUD))
        module.eh_proj.weight.copy_(torch.cat([torch.zeros(3, 3), torch.eye(3)], 1))
        torch.testing.assert_close(module.combine(embedding_BUD, hidden_BUD), module.hnorm(hidden_BUD))


def test_mtp_reads_the_state_before_the_final_norm() -> None:
    model, words = model_with(tiny_mtp(2)), tokens(1, 8)
    before = model.losses(words, torch.zeros_like(words))
    with torch.no_grad():
        model.norm.weight.mul_(torch.linspace(-2, 2, 4))
    after = model.losses(words, torch.zeros_like(words))
    assert before.mtp_sums == after.mtp_sums
    assert before.main_sum != after.main_sum


def test_depth_two_reads_depth_one_before_its_norm() -> None:
    model, words = model_with(tiny_mtp(2)), tokens(1, 8)
    before = model.losses(words, torch.zeros_like(words)).mtp_sums
    with torch.no_grad():
        model.mtp[0].norm.weight.mul_(torch.linspace(-2, 2, 4))
    after = model.losses(words, torch.zeros_like(words)).mtp_sums
    assert before[0] != after[0]
    assert before[1] == after[1]
    with torch.no_grad():
        model.mtp[0].eh_proj.weight.mul_(1.5)
    assert model.losses(words, torch.zeros_like(words)).mtp_sums[1] != before[1]


def test_mtp_of_a_document_does_not_see_what_follows_it() -> None:
    """After the first four tokens each token is a document of its own, without a label."""
    model = model_with(tiny_mtp(2))
    documents_BS = torch.tensor([[0, 0, 0, 0, 1, 2, 3, 4, 5]])
    first, second = tokens(1, 9, seed=0), tokens(1, 9, seed=1)
    second[:, :4] = first[:, :4]
    sums = [model.losses(words, documents_BS).mtp_sums for words in (first, second, first[:, :4])[:2]]
    alone = model.losses(first[:, :4], documents_BS[:, :4]).mtp_sums
    for a, b, c in zip(*sums, alone, strict=True):
        assert a == b
        torch.testing.assert_close(a, c)
    assert sums[0][0] > 0


def test_embedding_of_another_document_is_zeroed() -> None:
    model, words = model_with(tiny_mtp(2)), tokens(1, 8)
    documents_BS = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2]])
    seen = []
    for module in model.mtp:
        module.enorm.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model.losses(words, documents_BS)
    for depth, embedding_BUD in enumerate(seen, start=1):
        length = 7 - depth
        expected_BUD = model.embed(words[:, depth : depth + length]).clone()
        expected_BUD[documents_BS[:, depth : depth + length] != documents_BS[:, :length]] = 0
        assert torch.equal(embedding_BUD, expected_BUD)
        assert (expected_BUD == 0).all(-1).sum() == depth


def test_mtp_does_not_wrap_around_the_row() -> None:
    """Depth k ends k tokens early; the first token is nobody's label or embedding."""
    model, words = model_with(tiny_mtp(2)), tokens(1, 8)
    with torch.no_grad():
        for layer in [*model.layers, *(m.block for m in model.mtp)]:
            layer.attn.wo.weight.zero_()
    changed = words.clone()
    changed[0, 0] = (words[0, 0] + 1) % 11
    kept = torch.zeros_like(words)
    kept[0, 0] = 1
    before, after = (model.losses(w, kept).mtp_sums for w in (words, changed))
    assert [s.item() for s in before] == [s.item() for s in after]


def test_sums_count_each_valid_position_once() -> None:
    """All logits equal: every valid position costs log(vocabulary)."""
    model = model_with(tiny_mtp(2))
    with torch.no_grad():
        model.head.weight.zero_()
    documents_BS = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0, 0, 0]])
    losses = model.losses(tokens(2, 8), documents_BS)
    nats = torch.log(torch.tensor(11.0, dtype=torch.float64))
    torch.testing.assert_close(losses.main_sum, 14 * nats)
    torch.testing.assert_close(losses.mtp_sums[0], (1 + 3 + 6) * nats)
    torch.testing.assert_close(losses.mtp_sums[1], (0 + 2 + 5) * nats)


def test_depth_without_a_valid_position_has_zero_loss_and_finite_gradients() -> None:
    model, words = model_with(tiny_mtp(1)), tokens(1, 6)
    losses = model.losses(words, torch.arange(6)[None])
    assert losses.mtp_sums[0] == 0
    losses.mtp_sums[0].backward()
    assert all(p.grad is None or (p.grad == 0).all() for p in model.parameters())


def test_embedding_and_head_are_shared_and_learn_from_both_losses() -> None:
    model, words = model_with(tiny_mtp(1)), tokens(2, 6)
    documents_BS = torch.zeros_like(words)
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    assert [n for n in names if "embed" in n or "head" in n] == ["embed.weight", "head.weight"]
    assert len({id(p) for _, p in model.named_parameters(remove_duplicate=False)}) == len(names)

    shared = (model.embed.weight, model.head.weight)
    main = torch.autograd.grad(model.losses(words, documents_BS).main_sum, shared)
    mtp = torch.autograd.grad(model.losses(words, documents_BS).mtp_sums[0], shared)
    losses = model.losses(words, documents_BS)
    both = torch.autograd.grad(losses.main_sum + losses.mtp_sums[0], shared)
    for a, b, c in zip(main, mtp, both, strict=True):
        assert b.abs().sum() > 0
        torch.testing.assert_close(a + b, c)


def test_embedding_learns_as_the_token_ahead() -> None:
    """Token 10 stands only where depth 1 looks ahead, and no state that it predicts from has seen it."""
    model, words = model_with(tiny_mtp(1)), torch.tensor([[1, 2, 3, 10, 4]])
    sums = model.losses(words, torch.zeros_like(words)).mtp_sums
    (grad_VD,) = torch.autograd.grad(sums[0], model.embed.weight)
    assert grad_VD[10].abs().sum() > 0
    assert (grad_VD[4] == 0).all()


def test_mtp_layers_have_rows_of_counts_and_a_balance_loss() -> None:
    config = tiny_mtp(2, n_layers=3)
    model, words = model_with(config), tokens(2, 8)
    losses = model.losses(words, torch.zeros_like(words))
    assert losses.counts_LE.dtype == torch.int64
    assert losses.counts_LE.sum(1).tolist() == [2 * n * config.n_activated_experts for n in (7, 7, 6, 5)]
    gates = model.gates()
    assert gates[-2:] == [m.block.ffn.gate for m in model.mtp]
    assert len(gates) == 4
    for row in range(4):
        gates[row].bias.copy_(torch.tensor([9.0, 9.0, 0.0, 0.0]))
        counts_E = model.losses(words, torch.zeros_like(words)).counts_LE[row]
        assert (counts_E[2:] == 0).all()
    model.losses(words, torch.zeros_like(words)).balance_sum.backward()
    assert all(gate.weight.grad.abs().sum() > 0 for gate in gates)


def test_main_loss_is_untouched_by_mtp() -> None:
    with_mtp, without = Transformer(tiny_mtp(1)).double(), Transformer(tiny_mtp(0)).double()
    fill(with_mtp, 0)
    without.load_state_dict({k: v for k, v in with_mtp.state_dict().items() if not k.startswith("mtp.")})
    words = tokens(2, 6)
    losses = [m.losses(words, torch.zeros_like(words)) for m in (with_mtp, without)]
    assert losses[0].main_sum == losses[1].main_sum
    assert losses[1].mtp_sums == []
