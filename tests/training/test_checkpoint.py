"""Checkpoints: complete or absent, and errors that name the file, the tensor and the way out."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from deepseek_mini.config import Optimizer, OptimizerConfig
from deepseek_mini.model.transformer import Transformer, build_model
from deepseek_mini.optim.build import build_optimizers
from deepseek_mini.run_files import latest_checkpoint, list_checkpoints
from deepseek_mini.training.checkpoint import RunState, load_checkpoint, save_checkpoint
from small_model import small_model_config

CPU = torch.device("cpu")


def trained(name: Optimizer = Optimizer.adamw, seed: int = 0) -> tuple[Transformer, list]:
    model = build_model(small_model_config(), CPU, seed)
    optimizers = build_optimizers(model, OptimizerConfig(name=name))
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    for optimizer in optimizers:
        optimizer.step()
    for gate in model.gates():
        gate.bias.normal_()
    return model, optimizers


@pytest.fixture
def folder(tmp_path):
    model, optimizers = trained()
    for step in (10, 20):
        save_checkpoint(tmp_path, model, optimizers, RunState(step, step * 4, "abc"), {}, keep=3)
    return tmp_path


@pytest.mark.parametrize("name", list(Optimizer))
def test_weights_biases_moments_and_state_come_back_exactly(tmp_path, name):
    model, optimizers = trained(name)
    path = save_checkpoint(tmp_path, model, optimizers, RunState(3, 12, "abc"), {"train/loss": 2.5}, keep=1)
    other, other_optimizers = trained(name, seed=9)
    restored = load_checkpoint(path, other, other_optimizers, CPU)
    assert restored == (RunState(3, 12, "abc"), {"train/loss": 2.5})
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[key]), key
    for parameters in zip(model.parameters(), other.parameters(), strict=True):
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
    for a, b in zip(optimizers, other_optimizers, strict=True):
        a.step()
        b.step()
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[key]), key


def test_gate_biases_are_saved_in_float32(folder):
    weights = load_file(folder / "step_00000020" / "model.safetensors")
    biases = [tensor for name, tensor in weights.items() if name.endswith("gate.bias")]
    assert len(biases) == 3
    assert all(tensor.dtype == torch.float32 and tensor.abs().max() > 0 for tensor in biases)


def test_the_newest_k_are_kept_and_latest_names_the_last(tmp_path):
    model, optimizers = trained()
    for step in range(1, 6):
        save_checkpoint(tmp_path, model, optimizers, RunState(step, step, "abc"), {}, keep=2)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step_00000004", "step_00000005"]
    assert latest_checkpoint(tmp_path) == tmp_path / "step_00000005"


def test_there_are_no_pickles(folder):
    suffixes = {path.suffix for path in folder.rglob("*") if path.is_file()}
    assert suffixes == {".safetensors", ".json", ""}


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["truncated", "missing", "foreign"])
def test_a_damaged_file_is_named_with_the_earlier_checkpoint_that_still_loads(folder, name, damage):
    path = folder / "step_00000020" / name
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-20] if name != "state.json" else b'{"step": 2')
    elif damage == "missing":
        path.unlink()
    else:
        path.write_bytes(b"PK\x03\x04 not ours")
    model, optimizers = trained(seed=5)
    with pytest.raises(ValueError, match=name) as error:
        load_checkpoint(folder / "step_00000020", model, optimizers, CPU)
    assert f"resume={folder / 'step_00000010'}" in str(error.value)
    assert load_checkpoint(folder / "step_00000010", model, optimizers, CPU)[0].step == 10


@pytest.mark.parametrize("change", ["shape", "missing", "extra"])
def test_a_checkpoint_of_another_model_names_the_tensor(folder, change):
    path = folder / "step_00000020" / "model.safetensors"
    weights = load_file(path)
    if change == "shape":
        weights["norm.weight"] = torch.ones(5)
    elif change == "missing":
        del weights["norm.weight"]
    else:
        weights["norm.weight2"] = torch.ones(5)
    save_file(weights, path)
    model, optimizers = trained()
    with pytest.raises(ValueError, match=r"model\.safetensors: tensor norm\.weight"):
        load_checkpoint(folder / "step_00000020", model, optimizers, CPU)


def test_moments_of_another_optimizer_are_refused_by_name(folder):
    model, optimizers = trained(Optimizer.muon)
    with pytest.raises(ValueError, match=r"optimizer\.name"):
        load_checkpoint(folder / "step_00000020", model, optimizers, CPU)


def test_a_kill_between_writing_and_renaming_leaves_the_earlier_checkpoint_in_charge(folder, monkeypatch):
    model, optimizers = trained()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(folder, model, optimizers, RunState(30, 120, "abc"), {}, keep=3)
    assert latest_checkpoint(folder) == folder / "step_00000020"
    assert [p.name for p in list_checkpoints(folder)] == ["step_00000010", "step_00000020"]
    monkeypatch.undo()
    save_checkpoint(folder, model, optimizers, RunState(30, 120, "abc"), {}, keep=3)
    assert latest_checkpoint(folder) == folder / "step_00000030"
    assert json.loads((folder / "step_00000030" / "state.json").read_text())["sequences"] == 120


def test_latest_moves_only_to_a_checkpoint_that_is_there(folder, monkeypatch):
    model, optimizers = trained()
    real, renamed = os.replace, []

    def dies_before_the_second_renaming(source, target):
        if renamed:
            raise KeyboardInterrupt
        renamed.append(target)
        real(source, target)

    monkeypatch.setattr(os, "replace", dies_before_the_second_renaming)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(folder, model, optimizers, RunState(30, 120, "abc"), {}, keep=3)
    assert renamed == [folder / "step_00000030"]
    assert latest_checkpoint(folder) == folder / "step_00000020"
