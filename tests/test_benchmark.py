import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

from deepseek_mini.compose import load_config
from deepseek_mini.config import Device, Format
from deepseek_mini.cost.hardware import Peak

ROOT = Path(__file__).resolve().parents[1]
SHAPE = [
    *("model.dim=32", "model.inter_dim=32", "model.moe_inter_dim=16", "model.n_layers=2"),
    *("model.vocab_size=300", "model.q_lora_rank=8", "model.kv_lora_rank=8"),
    *("data.tokenizer=byte", "data.sequence_length=16", "data.batch_size=2", "device=cpu"),
]


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
