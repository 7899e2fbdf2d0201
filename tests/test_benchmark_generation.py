"""scripts/benchmark.py generation: both decode the same, and memory is what is held."""

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

from deepseek_mini.compose import load_config

ROOT = Path(__file__).resolve().parents[1]
SHAPE = [
    *("model.dim=32", "model.inter_dim=32", "model.moe_inter_dim=16", "model.n_layers=2", "device=cpu"),
    *("model.vocab_size=300", "model.q_lora_rank=8", "model.kv_lora_rank=8", "model.init_std=0.1"),
]
SMALL_HEADS = {"n_heads": 16, "kv_lora_rank": 8}


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    module = importlib.import_module("benchmarks.generation")
    for name, value in {"CONTEXT": 24, "DECODED": 4, "V3_HEADS": SMALL_HEADS}.items():
        monkeypatch.setattr(module, name, value)
    return module


def test_json_compares_decoding_and_memory(benchmark: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    script = importlib.import_module("benchmark")
    assert script.main(["generation", *SHAPE, "--rounds", "1", "--json"]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert [row["name"] for row in results] == [
        "generation_decode_batch_1",
        "generation_decode_batch_8",
        "generation_decode_batch_1",
        "generation_cache",
        "generation_decode_peak_memory",
    ]
    for row in results[:3]:
        assert row["ratio"] == pytest.approx(row["ours"] / row["peer"])
    for row in results[3:]:
        assert row["ratio"] == pytest.approx(row["peer"] / row["ours"])


def test_cache_memory_is_the_stated_bytes_and_the_peak_holds_it(benchmark: ModuleType) -> None:
    config = load_config(["model.mtp.depth=0", *SHAPE]).model
    model, peer = benchmark.pair(config, torch.device("cpu"), 0)
    prompts = benchmark.random_prompts(model, 1)
    held, peak = benchmark.measure_ours(model, prompts)
    assert held == 24 * 2 * (8 + config.qk_rope_head_dim) * 4
    assert peak > held
    peer_held, peer_peak = benchmark.measure_peer(peer, prompts)
    assert peer_held >= held
    assert peer_peak > peer_held


def test_the_peak_of_work_counts_what_lives_at_once(benchmark: ModuleType) -> None:
    def work() -> None:
        for _ in range(3):
            torch.empty(1000, 1000)

    assert benchmark.peak_of(work) == pytest.approx(4e6, rel=0.01)


def test_another_precision_than_the_one_asked_for_is_announced(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"pair": lambda *_: (None, None), "compare_memory": lambda *_: []}.items():
        monkeypatch.setattr(benchmark, name, value)
    monkeypatch.setattr(benchmark, "compare_speed", lambda *_: None)
    for asked, lines in {"bf16": ["generation: FP32 and not BF16"], "fp32": []}.items():
        said: list[str] = []
        benchmark.generation(load_config([*SHAPE, f"precision={asked}"]), 1, said.append)
        assert [line[: len("generation: FP32 and not BF16")] for line in said] == lines


@pytest.mark.parametrize(
    ("override", "answer"),
    [
        ("model.attention=gqa", "the peer does not have this model: model.attention=gqa"),
        ("model.max_seq_len=20", "model.max_seq_len=20 must be at least 28"),
    ],
)
def test_what_cannot_be_compared_exits_2(
    benchmark: ModuleType, capsys: pytest.CaptureFixture[str], override: str, answer: str
) -> None:
    script = importlib.import_module("benchmark")
    assert script.main(["generation", *SHAPE, override, "data.sequence_length=16"]) == 2
    assert answer in capsys.readouterr().err
