"""What a run records of its experts: against plain counting, through crashes, and at what price."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from deepseek_mini import run_files
from deepseek_mini.cost.jsonlines import read_lines
from deepseek_mini.data import build_data
from deepseek_mini.data.tokenizer import byte_tokenizer
from deepseek_mini.model.transformer import build_model
from deepseek_mini.training import experts as experts_module
from deepseek_mini.training.evaluation import evaluate
from deepseek_mini.training.experts import KINDS, ExpertLog, RoutingCounts, token_kinds, watch_gates
from deepseek_mini.training.trainer import run
from small_model import small_model_config
from small_run import write_corpus


def experts_of(run_dir):
    return read_lines(run_dir / run_files.EXPERTS)


def test_every_logged_step_has_the_batchs_counts_and_the_biases_after_it(make_config, tmp_path):
    config = make_config("trainer.log_every=3")
    assert run(config, tmp_path / "run", []) == 0
    rows, metrics = experts_of(tmp_path / "run"), run_files.read_metrics(tmp_path / "run")
    assert [row["step"] for row in rows] == [row["step"] for row in metrics] == [1, 3, 6, 9, 12]
    for row, logged in zip(rows, metrics, strict=True):
        loads = [[count * len(layer) / sum(layer) for count in layer] for layer in row["counts"]]
        violation = sum(max(layer) - 1 for layer in loads) / len(loads)
        assert violation == pytest.approx(logged["moe/max_violation"])
        assert row["tokens"] == logged["tokens"]
    assert [row["step"] for row in rows if "val_counts" in row] == [6, 12]
    with safe_open(tmp_path / "run/checkpoints/step_00000012/model.safetensors", "pt") as file:
        biases = [file.get_tensor(name) for name in sorted(file.keys()) if name.endswith("gate.bias")]
    assert torch.allclose(torch.tensor(rows[-1]["bias"]), torch.stack(biases), rtol=1e-5)


def test_held_out_counts_give_the_held_out_max_violation(make_config, tmp_path):
    assert run(make_config(), tmp_path / "run", []) == 0
    last = experts_of(tmp_path / "run")[-1]
    violations = [max(layer) * len(layer) / sum(layer) - 1 for layer in last["val_counts"]]
    logged = run_files.read_metrics(tmp_path / "run")[-1]["val/max_violation"]
    assert sum(violations) / len(violations) == pytest.approx(logged)


def test_a_step_done_again_after_a_crash_counts_once(make_config, tmp_path, monkeypatch):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert run(make_config(), whole, []) == 0
    real = ExpertLog.log

    def dies_at_six(self, step, *rest):
        real(self, step, *rest)
        if step == 6:
            raise KeyboardInterrupt

    monkeypatch.setattr(ExpertLog, "log", dies_at_six)
    with pytest.raises(KeyboardInterrupt):
        run(make_config(), broken, [])
    monkeypatch.setattr(ExpertLog, "log", real)
    assert run(make_config(), broken, []) == 0
    assert [row["step"] for row in experts_of(broken)] == [1, 2, 3, 4, 5, 6, *range(5, 13)]
    last = {row["step"]: row | {"attempt": 1} for row in experts_of(broken)}
    assert list(last.values()) == experts_of(whole)


def test_routing_is_what_plain_loops_count(make_config, tmp_path):
    corpus = write_corpus(tmp_path / "short", n_documents=40, n_words=10)
    config = make_config(
        f"data.path='{corpus}/*.txt'", "data.sequence_length=24", "data.validation_fraction=0.3"
    )
    data = build_data(config.data, 257, seed=0, announce=lambda _: None)
    model_config = small_model_config(depth=2)
    model_config.vocab_size = 257
    model = build_model(model_config, torch.device("cpu"), seed=3)
    kinds = token_kinds(data.tokenizer, 257)
    n_layers, n_experts = len(model.gates()), model_config.n_routed_experts
    counts = RoutingCounts(n_layers, n_experts, model_config.n_expert_groups, kinds)
    plain = evaluate(model, data, 5, 2, torch.autocast("cpu", enabled=False))
    assert evaluate(model, data, 5, 2, torch.autocast("cpu", enabled=False), routing=counts) == plain
    together = torch.zeros(n_layers, n_experts, n_experts)
    by_kind = torch.zeros(n_layers, len(KINDS), n_experts)
    by_document = torch.zeros(n_layers, len(data.validation_names), n_experts)
    reach = [[0] * model_config.n_expert_groups for _ in range(n_layers)]
    stream = data.validation.stream_N.tolist()
    for row in range(5):
        batch = data.validation.batch(row, 1)
        with torch.no_grad(), watch_gates(model) as chosen:
            model.predict(batch.tokens_BS, batch.documents_BS)
        tokens = batch.tokens_BS[0].tolist()
        (start,) = [i for i in range(len(stream) - 24) if stream[i : i + 25] == tokens]
        for layer, experts_NC in enumerate(chosen):
            depth = max(0, layer - (n_layers - 2) + 1)
            for chosen_C in experts_NC.tolist():
                reach[layer][len({e // model_config.experts_per_group for e in chosen_C}) - 1] += 1
            assert len(experts_NC) == 24 - depth
            for position, experts in enumerate(experts_NC.tolist()):
                for a, b in itertools.product(experts, repeat=2):
                    together[layer, a, b] += 1
                for expert in experts:
                    by_kind[layer, kinds[tokens[position + depth]], expert] += 1
                    document = stream[: start + position + depth].count(data.tokenizer.eos_id)
                    by_document[layer, document, expert] += 1
    assert torch.equal(counts.together_LEE, together)
    assert torch.equal(counts.kinds_LKE, by_kind)
    assert torch.equal(counts.counts_LE, by_kind.sum(1).long())
    met = list(counts.documents)
    assert len(met) > 1
    assert torch.equal(counts.documents_LDE[:, : len(met)], by_document[:, met])
    assert counts.documents_LDE.sum() == by_kind.sum()
    assert counts.reach_LG.tolist() == reach
    assert sum(row[0] > 0 for row in reach) < n_layers  # the limit of two groups is used


def test_documents_beyond_the_limit_share_a_place_that_is_not_kept(monkeypatch) -> None:
    monkeypatch.setattr(experts_module, "MOST_DOCUMENTS", 2)
    counts = RoutingCounts(1, 4, 2, torch.zeros(9, dtype=torch.int64))
    tokens_BS, documents_BS = torch.zeros(2, 4, dtype=torch.int64), torch.tensor([[5, 5, 7, 7], [3, 5, 8, 8]])
    counts.add([torch.tensor([[0], [0], [1], [1], [2], [3]])], tokens_BS, documents_BS)
    places = {document: counts.documents[document] for document in (3, 5, 7, 8)}
    assert sorted(places.values()) == [0, 1, 2, 2]
    by_place = counts.documents_LDE[0]
    assert by_place[places[5]].tolist() == [2, 0, 1, 0]
    assert by_place.sum() == 6


def test_the_newest_evaluation_replaces_the_file_of_the_one_before(make_config, tmp_path):
    assert run(make_config(), tmp_path / "run", []) == 0
    with safe_open(tmp_path / "run" / run_files.ROUTING, "pt") as file:
        facts, together = file.metadata(), file.get_tensor("together_LEE")
    assert facts["step"] == "12"
    assert json.loads(facts["kinds"]) == list(KINDS)
    assert [Path(name).suffix for name in json.loads(facts["documents"])] == [".txt"]
    counts = torch.tensor(experts_of(tmp_path / "run")[-1]["val_counts"])
    assert torch.equal(together.diagonal(dim1=1, dim2=2), counts.int())


def test_watching_leaves_no_hooks_and_a_model_without_experts_no_files(make_config, tmp_path):
    model_config = small_model_config(depth=0)
    model = build_model(model_config, torch.device("cpu"), seed=0)
    with watch_gates(model):
        assert all(gate._forward_hooks for gate in model.gates())
    assert not any(gate._forward_hooks for gate in model.gates())
    dense = make_config("model.n_dense_layers=2", "model.mtp.depth=0", "trainer.max_steps=6")
    assert run(dense, tmp_path / "dense", []) == 0
    assert not (tmp_path / "dense" / run_files.EXPERTS).exists()
    assert not (tmp_path / "dense" / run_files.ROUTING).exists()


def test_without_bias_balancing_the_biases_are_null(make_config, tmp_path):
    assert run(make_config("model.moe.balance=none", "trainer.max_steps=6"), tmp_path / "run", []) == 0
    assert {row["bias"] for row in experts_of(tmp_path / "run")} == {None}


def test_kinds_of_bytes() -> None:
    kinds = token_kinds(byte_tokenizer(), 300)
    names = {
        text: KINDS[kinds[byte_tokenizer().encode(text)[0]]] for text in ("a", "7", "+", " ", "\n", "\u00e9")
    }
    assert names == {
        **{"a": "word or part", "7": "number", "+": "punctuation"},
        **{" ": "white space", "\n": "white space", "\u00e9": "not ASCII"},
    }
    assert KINDS[kinds[byte_tokenizer().eos_id]] == "end"
    assert len(kinds) == 300
