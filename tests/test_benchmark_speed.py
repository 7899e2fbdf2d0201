"""scripts/benchmark.py moe_layer, data, scaling and startup, in small."""

import importlib
import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from deepseek_mini.compose import load_config
from deepseek_mini.config import Format
from deepseek_mini.cost import hardware
from deepseek_mini.cost.hardware import Peak
from deepseek_mini.model.moe import MoE
from small_run import SMALL, merge, write_corpus

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def scripts_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))


@pytest.fixture
def settings(tmp_path: Path) -> list[str]:
    corpus = write_corpus(tmp_path / "corpus")
    return [*SMALL, f"data.path='{corpus}/*.txt'", f"data.cache_dir='{tmp_path / 'cache'}'"]


def module(name: str) -> ModuleType:
    return importlib.import_module(f"benchmarks.{name}")


def results(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, list[dict]]:
    """Rows by name."""
    assert importlib.import_module("benchmark").main([*words, "--json"]) == 0
    rows: dict[str, list[dict]] = {}
    for row in json.loads(capsys.readouterr().out)["results"]:
        rows.setdefault(row["name"], []).append(row)
    return rows


def test_the_moe_layer_is_timed_beside_both_of_transformers_settings_and_its_own_products(
    settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    eager, grouped, products = results(capsys, "moe_layer", *settings, "--rounds", "1")["moe_layer_fp32"]
    assert "DeepseekV3MoE, eager experts" in eager["peer_name"]
    assert "DeepseekV3MoE, grouped_mm experts" in grouped["peer_name"]
    assert "its products at" in products["peer_name"]
    for row in (eager, grouped, products):
        assert row["ratio"] == pytest.approx(row["peer"] / row["ours"])


def test_a_layer_with_other_outputs_is_not_timed_as_a_peer(settings: list[str]) -> None:
    moe_layer = module("moe_layer")
    model = load_config(settings).model
    ours = MoE(model)
    for parameter in ours.parameters():
        nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(0))
    peer = moe_layer.transformers_layer(ours, model, "eager")
    x_BTD = torch.randn(2, 8, model.dim, generator=torch.Generator().manual_seed(1))
    off = torch.autocast("cpu", enabled=False)
    moe_layer._require_same_layer(ours, {"peer": peer}, x_BTD, off)
    with torch.no_grad():
        peer.get_parameter("gate.weight").neg_()
    with pytest.raises(RuntimeError, match="not the same layer"):
        moe_layer._require_same_layer(ours, {"peer": peer}, x_BTD, off)


@pytest.mark.parametrize("experts", ["eager", "grouped_mm"])
def test_in_bf16_the_peer_still_chooses_our_experts(experts: str, settings: list[str]) -> None:
    moe_layer = module("moe_layer")
    model = load_config(settings).model
    ours = MoE(model)
    for parameter in ours.parameters():
        nn.init.normal_(parameter, std=0.02, generator=torch.Generator().manual_seed(0))
    x_BTD = torch.randn(4, 32, model.dim, generator=torch.Generator().manual_seed(1))
    peer = moe_layer.transformers_layer(ours, model, experts)
    moe_layer._require_same_layer(ours, {experts: peer}, x_BTD, torch.autocast("cpu", torch.bfloat16))


def test_a_missing_peer_is_named_with_its_install(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    moe_layer = module("moe_layer")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    model = load_config(SMALL).model
    assert moe_layer.build_peers(MoE(model), model, Format.fp32, said.append) == {}
    assert "pip install 'torchtitan==0.3.*'" in said[0]
    assert "pip install 'deepseek-mini[hf]'" in said[1]


def test_data_is_compared_with_the_library_with_training_and_with_its_own_first_start(
    settings: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module("data"), "BATCHES", 2)
    rows = results(capsys, "data", *settings, "--rounds", "1")
    library, training = rows["data_tokenising"]
    assert "tokenizers" in library["peer_name"]
    assert "MB/s" in library["unit"]
    batches, start = rows["data_batches"][0], rows["data_second_start"][0]
    assert training["peer_name"] == batches["peer_name"] == "training at the device's whole matmul peak"
    assert training["peer"] < batches["peer"]  # megabytes and tokens
    assert start["ratio"] == pytest.approx(start["peer"] / start["ours"])


def test_scaling_tells_time_and_memory_beside_what_they_may_be(
    settings: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = {"TOKENS": 64, "EXPERTS": (8, 16), "LENGTHS": (16, 32), "VOCABULARIES": (257, 5000)}
    for name, value in (cases | {"VOCABULARY_TOKENS": (4, 32)}).items():
        monkeypatch.setattr(module("scaling"), name, value)
    rows = results(capsys, "scaling", *settings, "--rounds", "1")
    assert rows["scaling_experts_8_to_16"][0]["peer"] == 1.3
    assert 1 < rows["scaling_sequence_16_to_32"][0]["peer"] < 2
    assert rows["scaling_sequence_16_to_32"][0]["unit"] == "x the time of a step of 64 tokens"
    small, large = (rows[f"scaling_memory_vocabulary_{n}"][0] for n in (257, 5000))
    growth = rows["scaling_memory_growth"][0]
    assert growth["ours"] == pytest.approx(large["ours"] / small["ours"])
    assert growth["peer"] == pytest.approx(large["peer"] / small["peer"])
    assert growth["peer"] > 2  # transformers holds the logits


def test_training_in_fp8_is_bounded_by_the_peak_of_its_own_products(monkeypatch: pytest.MonkeyPatch) -> None:
    data, dtypes = module("data"), []
    monkeypatch.setattr(hardware, "_bf16_hardware", lambda device: (True, "pretended"))
    monkeypatch.setattr(data, "matmul_peak", lambda device, dtype: dtypes.append(dtype) or Peak(None, ""))
    for precision in ("bf16", "fp8"):
        data.most_tokens_per_second(load_config(merge(SMALL, [f"precision={precision}"])))
    assert dtypes == [torch.bfloat16, torch.float32]  # emulated here


def test_memory_is_told_without_a_peer_for_a_model_that_it_lacks(
    settings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    scaling, said = module("scaling"), []
    for name, value in {"VOCABULARIES": (257, 300), "VOCABULARY_TOKENS": (2, 8)}.items():
        monkeypatch.setattr(scaling, name, value)
    config = load_config([*settings, "model.attention=gqa", "model.n_kv_heads=1"])
    text = scaling.build_data(config.data, config.model.vocab_size, 0, said.append).train
    rows = scaling.vocabularies(config, text, CPU, said.append)
    assert all(row.ours > 0 and row.peer is None for row in rows)
    assert "scaling: transformers is left out: it has no model.attention=gqa" in said


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ([], "rows have 8 and 16 and 20000 tokens; model.max_seq_len=4096 must be at least 20000"),
        (["model.max_seq_len=20000"], r"rows have 8 and 16 and 20000 tokens, and the training text has \d+;"),
    ],
)
def test_rows_too_long_for_the_model_or_the_text_are_told_before_anything_is_timed(
    words: list[str], answer: str, settings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    scaling = module("scaling")
    for name, value in {"LENGTHS": (16, 20_000), "VOCABULARY_TOKENS": (4, 8)}.items():
        monkeypatch.setattr(scaling, name, value)
    monkeypatch.delattr(scaling, "our_training")
    with pytest.raises(ValueError, match=answer) as caught:
        scaling.scaling(load_config([*settings, *words]), 1, print)
    assert "data.sequence_length" not in str(caught.value)


def test_memory_above_the_state_is_what_a_step_needs_beside_its_gradients() -> None:
    model = nn.Linear(1000, 1000, bias=False)

    def step() -> None:
        activation = model(torch.ones(1, 1000))
        torch.empty(5_000_000)
        activation.sum().backward()

    assert module("memory").peak_above_state(step, model) == pytest.approx(20e6 - 4e6, rel=0.01)


def test_the_answer_to_a_mistyped_key_is_timed_and_must_be_one() -> None:
    startup = module("startup")
    assert 0 < startup.process_seconds(["model.dmi=3"], code=2) < 30
    with pytest.raises(RuntimeError, match="exited with 2"):
        startup.process_seconds(["model.dmi=3"], code=0)


def test_a_start_with_wrong_settings_is_the_users_to_mend(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"did you mean model\.dim"):
        module("startup").first_step_seconds(["model.dmi=3"], tmp_path, 0)


@pytest.mark.slow
def test_starts_are_timed_to_the_end_of_their_first_step(
    settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    short = [word for word in settings if not word.startswith("trainer.")]
    rows = results(capsys, "startup", *short, "--rounds", "1")
    assert {name: row["peer"] for name, (row,) in rows.items()} == {
        "startup_help": 1.0,
        "startup_config_error": 1.0,
        "startup_first_start": None,
        "startup_second_start": 8.0,
    }
    assert all(row["ours"] > 0 for (row,) in rows.values())
