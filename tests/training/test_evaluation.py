"""Held-out losses against plain loops over positions."""

import math
import statistics

import pytest
import torch

from deepseek_mini.data import Batch, Data, build_data
from deepseek_mini.inference.generate import Generation
from deepseek_mini.inference.load import load_run
from deepseek_mini.inference.sampling import Sampling
from deepseek_mini.model.transformer import Prediction, Transformer, build_model
from deepseek_mini.training.evaluation import evaluate
from deepseek_mini.training.trainer import run
from small_model import small_model_config
from small_run import write_corpus

SEQUENCES = 7
NO_AUTOCAST = torch.autocast("cpu", enabled=False)


@pytest.fixture
def data(make_config, tmp_path) -> Data:
    """Documents shorter than a sequence, so that several end in each."""
    corpus = write_corpus(tmp_path / "short", n_documents=40, n_words=3)
    config = make_config(
        f"data.path='{corpus}/*.txt'", "data.sequence_length=24", "data.validation_fraction=0.5"
    )
    return build_data(config.data, 257, seed=0, announce=lambda _: None)


@pytest.fixture
def model() -> Transformer:
    config = small_model_config(depth=2)
    config.vocab_size = 257
    return build_model(config, torch.device("cpu"), seed=3)


def nats_at(model: Transformer, prediction: Prediction, row: int, position: int, token: int) -> float:
    """-log softmax of one token, in float64."""
    logits = [float(x) for x in model.head.weight.double() @ prediction.hidden_BUD[row, position].double()]
    return math.log(sum(math.exp(x) for x in logits)) - logits[token]


def best_at(model: Transformer, prediction: Prediction, row: int, position: int) -> int:
    """The token that the head holds most likely, in float64."""
    logits = [float(x) for x in model.head.weight.double() @ prediction.hidden_BUD[row, position].double()]
    return logits.index(max(logits))


def plain_losses(model: Transformer, data: Data, batch: Batch) -> dict[str, float]:
    """The definitions of val/* as loops over rows and positions."""
    (main, *depths), stats = model.predict(batch.tokens_BS, batch.documents_BS)
    kept, drafted = [0] * len(depths), [0] * len(depths)
    nats, document_nats, document_bytes, mtp_nats = [], [], 0, []
    for row, (tokens, documents) in enumerate(
        zip(batch.tokens_BS.tolist(), batch.documents_BS.tolist(), strict=True)
    ):
        for position, token in enumerate(tokens[1:]):
            nats.append(nats_at(model, main, row, position, token))
            if token != data.tokenizer.eos_id:
                document_nats.append(nats[-1])
                document_bytes += 1  # byte tokens
        for depth, prediction in enumerate(depths, start=1):
            for position in range(len(tokens) - 1 - depth):
                label = position + depth + 1
                if documents[label] == documents[position]:
                    mtp_nats.append(nats_at(model, prediction, row, position, tokens[label]))
                    drafted[depth - 1] += 1
                    drafts = [best_at(model, p, row, position) for p in depths[:depth]]
                    own = [best_at(model, main, row, position + k) for k in range(1, depth + 1)]
                    kept[depth - 1] += drafts == own
    loads = [s.counts_E.tolist() for s in stats]
    return {
        "val/loss": statistics.mean(nats),
        "val/bpb": sum(document_nats) / math.log(2) / document_bytes,
        "val/mtp_loss": statistics.mean(mtp_nats),
        "val/max_violation": statistics.mean(max(load) / statistics.mean(load) - 1 for load in loads),
        "val/mtp_acceptance": kept[0] / drafted[0],
        "val/mtp_acceptance_2": kept[1] / drafted[1],
    }


@pytest.mark.parametrize("micro_batch_size", [SEQUENCES, 3])
@torch.no_grad()
def test_held_out_losses_are_what_plain_loops_give(data, model, micro_batch_size):
    batch = data.validation.batch(0, SEQUENCES)
    assert (batch.tokens_BS[:, 1:] == data.tokenizer.eos_id).sum() > 1
    measured = evaluate(model, data, SEQUENCES, micro_batch_size, NO_AUTOCAST)
    assert measured == pytest.approx(plain_losses(model, data, batch), rel=1e-5)


def test_a_model_without_mtp_and_experts_has_no_figure_for_them(data):
    config = small_model_config(depth=0)
    config.vocab_size, config.n_dense_layers = 257, config.n_layers
    measured = evaluate(build_model(config, torch.device("cpu"), 0), data, 2, 2, NO_AUTOCAST)
    assert measured["val/mtp_loss"] is None
    assert measured["val/mtp_acceptance"] is None
    assert "val/mtp_acceptance_2" not in measured
    assert measured["val/max_violation"] is None


def test_acceptance_is_that_of_speculative_decoding_behind_the_same_text(make_config, tmp_path):
    """Exactly, wherever the model's own choice is the text's; over all beginnings of a row, nearly."""
    config = make_config("trainer.max_steps=60", "optimizer.lr=1e-2", "trainer.save_every=60")
    assert run(config, tmp_path / "run", []) == 0
    model, tokenizer = load_run(tmp_path / "run")
    split = build_data(config.data, 257, seed=0, announce=lambda _: None).validation
    rows = split.batch(0, split.n_sequences).tokens_BS.tolist()
    tokens_BS = torch.tensor([row for row in rows if tokenizer.eos_id not in row])
    with torch.no_grad():
        predictions, _ = model.predict(tokens_BS, torch.zeros_like(tokens_BS))
        main, depth = (model.head(p.hidden_BUD).argmax(-1) for p in predictions)
    same, ours, theirs = [], [], []
    for row, tokens in enumerate(tokens_BS.tolist()):
        beginnings = [tokens[: i + 1] for i in range(len(tokens) - 2)]
        _, second_pass, *_ = Generation(model, beginnings, 3, Sampling(0), speculative=True)
        for i, new in enumerate(second_pass):
            ours.append(bool(depth[row, i] == main[row, i + 1]))
            theirs.append(len(new) == 2)
            if int(main[row, i]) == tokens[i + 1]:
                same.append((ours[-1], theirs[-1]))
    assert len(same) > 60
    assert 0.2 < statistics.mean(kept for kept, _ in same) < 0.99
    assert all(a == b for a, b in same)
    assert statistics.mean(ours) == pytest.approx(statistics.mean(theirs), abs=0.15)
