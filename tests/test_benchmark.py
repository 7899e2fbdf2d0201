import importlib
import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

from deepseek_mini.compose import load_config
from deepseek_mini.config import Device, Format
from deepseek_mini.cost import hardware
from deepseek_mini.cost.hardware import Peak

ROOT = Path(__file__).resolve().parents[1]
SHAPE = [
    *("model.dim=32", "model.inter_dim=32", "model.moe_inter_dim=16", "model.n_layers=2"),
    *("model.vocab_size=300", "model.q_lora_rank=8", "model.kv_lora_rank=8"),
    *("data.tokenizer=byte", "data.sequence_length=16", "data.batch_size=2", "device=cpu"),
]
IN_HIGH_PRECISION = ("training", "moe_layer", "scaling", "generation")


@pytest.fixture(autouse=True)
def scripts_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))


@pytest.fixture
def training() -> ModuleType:
    return importlib.import_module("benchmarks.training")


def test_json_of_training_compares_speed_mfu_and_memory_with_the_peer(
    training: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.txt").write_text(f"{name} few words to train on, again and again. " * 40)
    text = ["data=text_files", f"data.path='{tmp_path}/*.txt'", f"data.cache_dir='{tmp_path}'"]
    contenders = training._contenders
    monkeypatch.setattr(training, "_contenders", lambda *arguments: contenders(*arguments)[:2])
    script = importlib.import_module("benchmark")
    words = ["training", *SHAPE, *text, "data.validation_fraction=0.4", "--rounds", "1", "--json"]
    assert script.main(words) == 0
    report = json.loads(capsys.readouterr().out)
    assert list(report) == ["device", "results"]
    results = report["results"]
    assert all(list(row) == ["name", "ours", "peer", "peer_name", "ratio", "unit"] for row in results)
    fp32 = [row for row in results if row["name"].startswith("training_fp32")]
    assert len(fp32) == 4
    for row in fp32:
        less_is_better = "memory" in row["name"]
        assert row["ratio"] == pytest.approx((row["ours"] / row["peer"]) ** (-1 if less_is_better else 1))
    assert {"DeepseekV3ForCausalLM, eager experts" in row["peer_name"] for row in fp32} == {True}
    best = next(row for row in results if row["name"] == "training_throughput_best")
    speeds = [row for row in results if row["name"].endswith("_throughput")]
    assert best["ours"] == max(row["ours"] for row in speeds)
    assert best["peer"] == max(row["peer"] for row in speeds)
    machine = {row["name"]: row["ours"] for row in results if row["name"].startswith("machine")}
    assert machine["machine_matmul_fp32"] > machine["machine_memory"] > 1e8
    units = {row["unit"] for row in fp32 if row["name"].endswith("_mfu")}
    (source,) = (row["unit"] for row in results if row["name"] == "machine_matmul_fp32")
    peak = machine["machine_matmul_fp32"]
    assert units == {f"of {peak:.3g} {source}"}


@pytest.mark.parametrize(
    "overrides",
    [[], ["model.q_lora_rank=0"], ["model.n_shared_experts=2"], ["model.n_dense_layers=2"]],
    ids=str,
)
def test_the_peer_has_our_number_of_parameters(overrides: list[str], training: ModuleType) -> None:
    own = {override.partition("=")[0] for override in overrides}
    shape = [word for word in SHAPE if word.partition("=")[0] not in own]
    config = load_config(["model.mtp.depth=0", *shape, *overrides])
    with torch.device("meta"):
        training.peer_model(config.model, "eager")


def test_the_two_steps_start_at_the_same_loss_and_learn(training: ModuleType) -> None:
    config = load_config(["model.mtp.depth=0", *SHAPE])
    tokens = torch.randint(0, 300, (2, 17), generator=torch.Generator().manual_seed(0))
    batch = training.Batch(tokens, torch.zeros_like(tokens))
    autocast = torch.autocast("cpu", enabled=False)
    cpu = torch.device("cpu")
    ours = training.our_training(config, cpu, autocast).step
    peer = training.peer_training(config, "eager", cpu, autocast).step
    our_losses, peer_losses = [ours(batch) for _ in range(5)], [peer(batch) for _ in range(5)]
    torch.use_deterministic_algorithms(False)
    assert our_losses[0] == pytest.approx(peer_losses[0], rel=1e-3)
    assert our_losses[-1] < our_losses[0]
    assert peer_losses[-1] < peer_losses[0]


def test_a_contender_that_failed_has_null_results(training: ModuleType) -> None:
    config = load_config(["model.mtp.depth=0", *SHAPE])
    ours = training.Record([0.5, 0.25, 0.25], losses=[5.0], peak_bytes=2**30, bytes_above_state=2**29)
    peak = Peak(1e9, "made up")
    speed, mfu, memory, above = training._compare(Format.fp32, ours, training.Record(), "peer", config, peak)
    assert (speed.ours, speed.peer, speed.ratio) == (2 * 16 / 0.25, None, None)
    assert (memory.ours, memory.peer, memory.ratio) == (1.0, None, None)
    assert (above.ours, above.peer, above.ratio) == (0.5, None, None)
    assert mfu.ours is not None
    assert mfu.peer is None


def test_what_a_contender_writes_to_stderr_is_shown_only_if_it_fails(
    training: ModuleType, capfd: pytest.CaptureFixture[str]
) -> None:
    ours, *_ = training._contenders(Format.fp32, torch.device(Device.cpu), compile_peers=False)
    batches = []
    for token in (299, 300):  # the second is none of the vocabulary
        tokens = torch.full((2, 17), token)
        batches.append(training.Batch(tokens, torch.zeros_like(tokens)))
    said: list[str] = []
    config = load_config(["model.mtp.depth=0", *SHAPE])
    assert training._take_turns([ours], config, batches, said.append) == {ours: training.Record()}
    *progress, failure = (text for text in said if "memory" not in text)
    assert progress == ["fp32: step 1 of 2", "fp32: step 2 of 2"]
    first, *_, last = failure.splitlines()
    assert first == "deepseek_mini failed, and is left out:"
    assert last.startswith("deepseek_mini: IndexError: ")
    assert capfd.readouterr().err == ""


def test_contenders_that_do_another_task_are_refused(training: ModuleType) -> None:
    ours, peer, *_ = training._contenders(Format.fp32, torch.device(Device.cpu), compile_peers=False)
    records = {ours: training.Record(losses=[5.7]), peer: training.Record(losses=[6.7])}
    with pytest.raises(RuntimeError, match="not the same task"):
        training._require_same_task(records, ours)


def test_missing_transformers_names_the_install(
    training: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'deepseek-mini\[hf\]'"):
        training.training(load_config(SHAPE), 1, print)


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["trainning"], "there is no benchmark trainning"),
        (["training", "model.dmi=3"], "did you mean model.dim?"),
        (["training", "model.attention=gqa"], "model.attention=mla"),
        (["training", "model.group_score=max"], "model.group_score=top2 only"),
        (["moe_layer", "model.group_score=max"], "model.group_score=top2 only"),
        *((([name, "precision=fp8"], f"{name}: FP32 and BF16 only")) for name in IN_HIGH_PRECISION),
        (["training", "--rounds", "0"], "must be at least 1"),
    ],
)
def test_wrong_words_exit_2_with_what_would_be_right(
    arguments: list[str], answer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    script = importlib.import_module("benchmark")
    try:
        code = script.main(arguments)
    except SystemExit as error:  # argparse
        code = error.code
    assert code == 2
    captured = capsys.readouterr()
    assert answer in captured.err
    assert captured.out == ""


def test_compiled_contenders_are_the_peers_settings_again(training: ModuleType) -> None:
    cpu = torch.device(Device.cpu)
    ours, *plain = training._contenders(Format.fp32, cpu, compile_peers=False)
    _, *both = training._contenders(Format.fp32, cpu, compile_peers=True)
    assert both[: len(plain)] == plain
    settings = [(c.experts, c.keeps_memory) for c in both]
    assert settings[len(plain) :] == settings[: len(plain)]
    assert [c.compiled for c in both] == [False] * len(plain) + [True] * len(plain)
    assert ours.experts is None


@pytest.mark.parametrize(
    ("has_bf16", "asked", "formats"),
    [
        (False, "auto", [Format.fp32]),
        (True, "auto", [Format.fp32, Format.bf16]),
        (False, "bf16", [Format.bf16]),
        (True, "bf16", [Format.bf16]),
        (True, "fp32", [Format.fp32]),
    ],
)
def test_the_precision_asked_for_is_what_runs_and_each_is_announced(
    has_bf16: bool, asked: str, formats: list[Format], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "_bf16_hardware", lambda device: (has_bf16, "the reason"))
    said: list[str] = []
    precisions = importlib.import_module("benchmarks.precisions").precisions
    config = load_config([*SHAPE, f"precision={asked}"])
    assert precisions("training", config, torch.device("cpu"), said.append) == formats
    (line,) = said
    assert line.startswith(f"training: {' and '.join(format.upper() for format in formats)} with precision=")
    assert ("the reason" in line) == (asked == "auto" or not has_bf16)


def test_one_benchmark_that_cannot_run_does_not_stop_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = importlib.import_module("benchmark")
    there = {name: script.BENCHMARKS[name] for name in ("scaling", "moe_layer")}
    monkeypatch.setattr(script, "BENCHMARKS", there)
    assert script.main([*SHAPE, "precision=fp8", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["results"] == []
    assert "scaling is left out" in captured.err
    assert "moe_layer is left out" in captured.err
