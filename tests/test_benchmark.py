import importlib
import json
import os
import subprocess
import sys
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


def test_json_of_training_compares_speed_mfu_and_memory_with_every_peer(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.txt").write_text(f"{name} few words to train on, again and again. " * 40)
    text = ["data=text_files", f"data.path='{tmp_path}/*.txt'", f"data.cache_dir='{tmp_path}'"]
    text.append("data.validation_fraction=0.4")
    done = subprocess.run(
        [
            sys.executable,
            ROOT / "scripts" / "benchmark.py",
            "training",
            *SHAPE,
            *text,
            "--rounds",
            "1",
            "--json",
        ],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert list(report) == ["device", "results"]
    results = report["results"]
    assert all(list(row) == ["name", "ours", "peer", "peer_name", "ratio", "unit"] for row in results)
    fp32 = [row for row in results if "fp32" in row["name"]]
    assert len(fp32) == 9
    for row in fp32:
        more_is_better = row["unit"] != "GiB"
        assert row["ratio"] == pytest.approx((row["ours"] / row["peer"]) ** (1 if more_is_better else -1))
    assert len({row["peer_name"] for row in fp32}) == 3


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
    ours = training.our_step(config, cpu, autocast)
    peer = training.peer_step(config, "eager", cpu, autocast)
    our_losses, peer_losses = [ours(batch) for _ in range(5)], [peer(batch) for _ in range(5)]
    torch.use_deterministic_algorithms(False)
    assert our_losses[0] == pytest.approx(peer_losses[0], rel=1e-3)
    assert our_losses[-1] < our_losses[0]
    assert peer_losses[-1] < peer_losses[0]


def test_a_contender_that_failed_has_null_results(training: ModuleType) -> None:
    config = load_config(["model.mtp.depth=0", *SHAPE])
    ours = training.Record(seconds=[0.5, 0.25, 0.25], losses=[5.0], peak_bytes=2**30)
    peak = Peak(1e9, "made up")
    speed, mfu, memory = training._compare(Format.fp32, ours, training.Record(), "peer", config, peak)
    assert (speed.ours, speed.peer, speed.ratio) == (2 * 16 / 0.25, None, None)
    assert (memory.ours, memory.peer, memory.ratio) == (1.0, None, None)
    assert mfu.ours is not None
    assert mfu.peer is None


def test_contenders_that_do_another_task_are_refused(training: ModuleType) -> None:
    ours, peer, *_ = training._contenders(Format.fp32, torch.device(Device.cpu))
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
