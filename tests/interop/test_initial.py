"""`model.init_from`: a run that starts from another one's weights."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from deepseek_mini import run_files
from deepseek_mini.compose import load_config
from deepseek_mini.config import Config, ModelConfig
from deepseek_mini.cost.jsonlines import read_lines
from deepseek_mini.data.tokenizer import byte_tokenizer
from deepseek_mini.interop.export import Encoding, export_run
from deepseek_mini.interop.load import import_release, load_initial_weights
from deepseek_mini.model.transformer import Transformer, build_model
from deepseek_mini.training.trainer import run
from interop.helpers import random_config, random_model, save_run
from small_run import SMALL, merge, write_corpus


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A trained run in every form that weights may have."""
    folder = tmp_path_factory.mktemp("initial")
    write_corpus(folder / "corpus")
    run(small(folder, "trainer.max_steps=4"), folder / "run", [])
    export_run(folder / "run", folder / "hf", Encoding(), max_shard_bytes=50_000)
    import_release(folder / "hf", folder / "imported")
    return folder


FORMS = ("run", "run/checkpoints", "run/checkpoints/step_00000004", "hf", "imported")


def small(folder: Path, *overrides: str) -> Config:
    paths = [f"data.path='{folder}/corpus/*.txt'", f"data.cache_dir='{folder / 'cache'}'"]
    return load_config(merge([*SMALL, *paths], overrides))


def start(folder: Path, form: str, *overrides: str) -> tuple[Transformer, str]:
    """A model that has been started from one of the forms, and what was said."""
    config = small(folder, f"model.init_from='{folder / form}'", *overrides)
    model = build_model(config.model, torch.device("cpu"), seed=3)
    return model, load_initial_weights(model, byte_tokenizer())


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_run_gives_its_weights_bit_for_bit(form, folder):
    model, said = start(folder, form)
    trained = load_file(folder / "run/checkpoints/step_00000004/model.safetensors")
    state = model.state_dict()
    assert state.keys() == trained.keys()
    assert all(torch.equal(state[name], trained[name]) for name in state)
    assert str(folder / form) in said
    assert "there" not in said


def events(run_dir: Path) -> list[str]:
    path = run_dir / "events.jsonl"
    return [row["kind"] for row in read_lines(path)] if path.exists() else []


def test_training_starts_from_the_weights_and_says_so(folder, tmp_path):
    starts = {"a": f"'{folder / 'run'}'", "b": f"'{folder / 'hf'}'", "c": "null"}
    for name, path in starts.items():
        config = small(folder, "trainer.max_steps=1", f"model.init_from={path}")
        assert run(config, tmp_path / name, []) == 0
    losses = [run_files.read_metrics(tmp_path / name)[0]["train/main_loss"] for name in starts]
    assert losses[0] == losses[1] != losses[2]
    assert [events(tmp_path / name) for name in starts] == [["initial_weights"], ["initial_weights"], []]


def test_a_run_that_goes_on_takes_its_own_checkpoint(folder, tmp_path):
    shutil.copytree(folder / "run", tmp_path / "source")
    source = f"model.init_from='{tmp_path / 'source'}'"
    config = small(folder, "trainer.max_steps=6", "trainer.save_every=3", source)
    assert run(config, tmp_path / "run", []) == 0
    last = tmp_path / "run/checkpoints/step_00000006"
    trained = (last / "model.safetensors").read_bytes()
    shutil.rmtree(last)
    shutil.rmtree(tmp_path / "source")
    (tmp_path / "run/checkpoints/latest").write_text("step_00000003\n")
    (tmp_path / "run" / run_files.SUMMARY).unlink()
    assert run(config, tmp_path / "run", []) == 0
    assert (last / "model.safetensors").read_bytes() == trained
    assert events(tmp_path / "run").count("initial_weights") == 1


@pytest.mark.parametrize(
    ("form", "tensor"),
    [("run", "attn.kv_norm.weight"), ("hf", "self_attn.kv_a_layernorm.weight")],
)
def test_a_shape_that_does_not_fit_names_file_and_tensor(form, tensor, folder):
    said = rf"{folder / form}.*\.safetensors: tensor .*{tensor} has shape.*; check the model\.\* keys"
    with pytest.raises(ValueError, match=said):
        start(folder, form, "model.kv_lora_rank=12")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.mtp.depth=2", "tensor .* is missing"),
        ("model.mtp.depth=0", "tensor .* is no part of this model"),
        ("model.moe.balance=none", "tensor .*bias is no part of this model"),
    ],
)
@pytest.mark.parametrize("form", ["run", "hf"])
def test_a_model_with_other_parts_is_refused(form, override, message, folder):
    with pytest.raises(ValueError, match=message):
        start(folder, form, override)


@pytest.mark.parametrize("form", ["run", "hf"])
def test_other_settings_under_the_same_shapes_are_named(form, folder):
    _, said = start(folder, form, "model.route_scale=1.5", "model.n_activated_experts=3")
    assert said.endswith("model.n_activated_experts=3 (there 2); model.route_scale=1.5 (there 2.5)")


@pytest.mark.parametrize("form", ["run", "hf", "imported"])
def test_another_tokenizer_is_refused_naming_both(form, folder, tmp_path):
    config = small(folder, f"model.init_from='{folder / form}'", "data.tokenizer=bpe", "trainer.max_steps=1")
    with pytest.raises(ValueError, match=rf"init_from=.*{folder / form}/tokenizer.json.*data.tokenizer"):
        run(config, tmp_path / "run", [])


def test_weights_without_a_tokenizer_are_taken_and_the_line_says_so(tmp_path):
    config: ModelConfig = random_config(3)
    save_run(tmp_path / "run", random_model(config, 0))
    config.init_from = str(tmp_path / "run")
    said = load_initial_weights(random_model(config, 1), byte_tokenizer())
    assert "without a tokenizer" in said


@pytest.mark.parametrize(("place", "form"), [("run/checkpoints", "step_00000004"), ("run", "."), ("hf", ".")])
def test_a_path_may_be_relative(place, form, folder, monkeypatch):
    monkeypatch.chdir(folder / place)
    config = small(folder, f"model.init_from='{form}'")
    model = build_model(config.model, torch.device("cpu"), seed=3)
    assert "tensors from" in load_initial_weights(model, byte_tokenizer())


def test_a_model_without_latent_attention_does_not_start_from_a_release(folder):
    with pytest.raises(ValueError, match=rf"model.attention=mha.*{folder / 'hf'}.*set model.attention=mla"):
        start(folder, "hf", "model.attention=mha")


def test_a_path_without_weights_is_named(folder):
    with pytest.raises(ValueError, match=r"model.init_from=.*corpus: no weights are there"):
        start(folder, "corpus")
