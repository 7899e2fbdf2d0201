"""Whole runs in FP8: they learn, repeat, go on, and end as checkpoints like any other."""

import json
from dataclasses import replace

import pytest
import torch

from deepseek_mini import run_files
from deepseek_mini.compose import load_config
from deepseek_mini.config import Backend, Config, Format, PrecisionConfig
from deepseek_mini.interop.export import Encoding, export_run
from deepseek_mini.model.transformer import build_model
from deepseek_mini.precision.convert import convert
from deepseek_mini.training import trainer
from deepseek_mini.training.trainer import run
from kernel_helpers import interpreter_only
from small_model import small_model_config
from small_run import SMALL, merge, write_corpus

GOLDEN = [7.204875, 7.163156, 7.083965, 6.981842, 6.816174, 6.548315]
"""First losses of a small run; in FP32 they differ by up to 2e-5."""


@pytest.fixture
def make_config(tmp_path):
    corpus = write_corpus(tmp_path / "corpus")
    paths = [f"data.path='{corpus}/*.txt'", f"data.cache_dir='{tmp_path / 'cache'}'"]

    def make(*overrides: str) -> Config:
        return load_config(merge([*SMALL, *paths, "precision=fp8"], overrides))

    return make


def losses(run_dir) -> list[float]:
    return [row["train/loss"] for row in run_files.read_metrics(run_dir)]


def test_a_run_says_what_multiplies_why_nothing_faster_does_and_which_layers_are_converted(
    make_config, tmp_path, capsys
):
    assert run(make_config("trainer.max_steps=2", "trainer.sample_every=2"), tmp_path / "run", []) == 0
    said = capsys.readouterr().out
    assert "fp8: not by te: " in said
    assert "fp8: not by triton: " in said
    assert "in fp8: layers.0-1.attn.{wq_a,wq_b,wkv_a,wkv_b,wo}, " in said
    assert "precision    fp8 by emulated, fp32 factors; the rest fp32 (this CPU" in said or "bf16" in said
    environment = json.loads((tmp_path / "run" / run_files.ENVIRONMENT).read_text())
    assert environment["precision"].startswith("fp8 by emulated")


def test_a_run_learns_stays_near_fp32_and_repeats_bit_for_bit(make_config, tmp_path):
    longer = ("trainer.max_steps=16", "optimizer.lr=2e-2", "trainer.save_every=16")
    for name, overrides in (("a", longer), ("b", longer), ("fp32", (*longer, "precision=fp32"))):
        run(make_config(*overrides), tmp_path / name, [])
    ours, exact = losses(tmp_path / "a"), losses(tmp_path / "fp32")
    assert ours == losses(tmp_path / "b")
    assert ours[-1] < ours[0] - 1
    assert ours != exact
    assert ours[-1] == pytest.approx(exact[-1], rel=0.02)


def test_a_resumed_run_is_bitwise_identical(make_config, tmp_path, monkeypatch):
    config = make_config("trainer.micro_batch_size=2", "optimizer.lr=1e-2")
    run(config, tmp_path / "whole", [])
    assert losses(tmp_path / "whole")[: len(GOLDEN)] == pytest.approx(GOLDEN, rel=1e-5)
    real, calls = trainer.train_step, []

    def dies_at_step_7(*arguments, **keywords):
        calls.append(1)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return real(*arguments, **keywords)

    monkeypatch.setattr(trainer, "train_step", dies_at_step_7)
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "parts", [])
    monkeypatch.undo()
    assert run(config, tmp_path / "parts", []) == 0
    assert losses(tmp_path / "parts")[-5:] == losses(tmp_path / "whole")[-5:]


def test_an_fp8_run_goes_on_in_fp32_and_is_exported_like_any_other(make_config, tmp_path):
    run(make_config(), tmp_path / "fp8", [])
    onwards = make_config("precision=fp32", f"resume={tmp_path / 'fp8'}", "trainer.max_steps=14")
    assert run(onwards, tmp_path / "fp32", []) == 0
    export_run(tmp_path / "fp8", tmp_path / "out", Encoding(fp8=True))
    assert (tmp_path / "out" / "config.json").exists()


def test_a_backend_that_cannot_run_is_refused_before_a_directory_is_made(make_config, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    for name in ("te", "triton"):
        with pytest.raises(ValueError, match=f"precision.backend={name}: "):
            run(make_config(f"precision.backend={name}"), tmp_path / "run", [])
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@interpreter_only
def test_a_model_on_simulated_triton_kernels_has_the_gradients_of_the_emulation():
    import precision.arithmetics  # noqa: F401  mends the interpreter's casts

    gradients = []
    for backend in (Backend.emulated, Backend.triton):
        model = build_model(replace(small_model_config(depth=0), n_layers=2), torch.device("cpu"), seed=1)
        convert(model, PrecisionConfig(Format.fp8, backend))
        tokens = torch.arange(2 * 9).view(2, 9) * 7 % 61
        model.losses(tokens, torch.zeros_like(tokens)).main_sum.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    for name, wanted in gradients[0].items():
        assert (gradients[1][name] - wanted).norm() <= 0.02 * wanted.norm(), name
