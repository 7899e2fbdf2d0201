"""What an export consists of, bit by bit: files, FP8 blocks, shards, the card, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from deepseek_mini import run_files
from deepseek_mini.compose import compose, load_config
from deepseek_mini.config import Attention, Balance, MoeConfig, ScoreFunction
from deepseek_mini.data.tokenizer import byte_tokenizer
from deepseek_mini.interop.export import Encoding, export_run
from deepseek_mini.interop.hf_config import from_release, to_release
from deepseek_mini.interop.load import import_release
from deepseek_mini.interop.names import release_places
from deepseek_mini.model.transformer import build_on_meta
from deepseek_mini.training.trainer import run as train
from interop.helpers import files_of, random_config, random_model, save_run
from small_model import small_model_config
from small_run import SMALL, merge, write_corpus

ENCODINGS = {
    "float32": Encoding(),
    "bfloat16": Encoding(torch.bfloat16),
    "fp8": Encoding(torch.bfloat16, fp8=True),
}

V3_CONFIG = {
    "architectures": ["DeepseekV3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "auto_map": {"AutoModelForCausalLM": "modeling_deepseek.DeepseekV3ForCausalLM"}, "aux_loss_alpha": 0.001,
    "bos_token_id": 0, "eos_token_id": 1, "ep_size": 1, "first_k_dense_replace": 3, "hidden_act": "silu",
    "hidden_size": 7168, "initializer_range": 0.02, "intermediate_size": 18432, "kv_lora_rank": 512,
    "max_position_embeddings": 163840, "model_type": "deepseek_v3", "moe_intermediate_size": 2048,
    "moe_layer_freq": 1, "n_group": 8, "n_routed_experts": 256, "n_shared_experts": 1, "norm_topk_prob": True,
    "num_attention_heads": 128, "num_experts_per_tok": 8, "num_hidden_layers": 61,
    "num_key_value_heads": 128, "num_nextn_predict_layers": 1, "pretraining_tp": 1, "q_lora_rank": 1536,
    "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
    "quantization_config": {
        "activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128]
    },
    "rms_norm_eps": 1e-06,
    "rope_scaling": {
        "beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096, "type": "yarn",
    },
    "rope_theta": 10000, "routed_scaling_factor": 2.5, "scoring_func": "sigmoid", "seq_aux": True,
    "tie_word_embeddings": False, "topk_group": 4, "topk_method": "noaux_tc", "torch_dtype": "bfloat16",
    "transformers_version": "4.33.1", "use_cache": True, "v_head_dim": 128, "vocab_size": 129280,
}  # fmt: skip
"""config.json of deepseek-ai/DeepSeek-V3."""

V3_TENSORS, V3_BYTES = 91_991, 688_574_839_360
"""Of the files of deepseek-ai/DeepSeek-V3, as a public listing of their headers has them."""


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    """A run whose matrices have edges that are not multiples of 128, with two MTP modules."""
    config = replace(
        random_config(14), vocab_size=260, dim=150, moe_inter_dim=133, kv_lora_rank=127, n_dense_layers=1
    )
    folder = save_run(tmp_path_factory.mktemp("export") / "run", random_model(config, 5))
    byte_tokenizer().save(folder / run_files.TOKENIZER)
    return folder


def weights_of(out: Path) -> dict[str, Tensor]:
    return {name: t for file in out.glob("*.safetensors") for name, t in load_file(file).items()}


def own_weights(run_dir: Path) -> dict[str, Tensor]:
    """The run's tensors under the release's names."""
    tensors = load_file(run_dir / "checkpoints/step_00000000/model.safetensors")
    places = release_places(tensors, run_files.read_config(run_dir).model.n_layers)
    return {name: place.of(tensors) for name, place in places.items()}


@pytest.mark.parametrize("kind", ENCODINGS)
def test_save_load_save_is_byte_identical(kind, run_dir, tmp_path):
    source = run_dir
    for name in ("1", "2"):
        export_run(source, tmp_path / f"out{name}", ENCODINGS[kind], max_shard_bytes=300_000)
        source = tmp_path / f"run{name}"
        import_release(tmp_path / f"out{name}", source)
    first, second = (files_of(tmp_path / f"out{name}", "*.safetensors", "*.json") for name in ("1", "2"))
    assert len(first) > 5
    assert first == second
    one, two = (files_of(tmp_path / f"run{name}/checkpoints/step_00000000", "*") for name in ("1", "2"))
    assert one == two


def test_float32_keeps_every_bit_of_the_run(run_dir, tmp_path):
    export_run(run_dir, tmp_path / "out", Encoding())
    import_release(tmp_path / "out", tmp_path / "run")
    there, back = (
        load_file(folder / "checkpoints/step_00000000/model.safetensors")
        for folder in (run_dir, tmp_path / "run")
    )
    assert there.keys() == back.keys()
    assert all(torch.equal(there[name], back[name]) for name in there)
    assert files_of(run_dir, "tokenizer.json") == files_of(tmp_path / "run", "tokenizer.json")
    ours, again = (run_files.read_config(folder).model for folder in (run_dir, tmp_path / "run"))
    assert to_release(ours) == to_release(again)


def test_what_transformers_saves_of_an_export_is_the_run_again(run_dir, tmp_path):
    export_run(run_dir, tmp_path / "out", Encoding())
    peer = AutoModelForCausalLM.from_pretrained(tmp_path / "out", experts_implementation="eager")
    peer.save_pretrained(tmp_path / "saved")
    import_release(tmp_path / "saved", tmp_path / "run")
    there, back = (
        load_file(folder / "checkpoints/step_00000000/model.safetensors")
        for folder in (run_dir, tmp_path / "run")
    )
    assert back.keys() == {name for name in there if not name.startswith("mtp.")}
    assert all(torch.equal(there[name], back[name]) for name in back)


def test_fp8_has_deepseeks_layout(run_dir, tmp_path):
    """E4M3 with `weight_scale_inv` for the matrices of attention, MLPs and experts; BF16 for the rest."""
    export_run(run_dir, tmp_path / "out", ENCODINGS["fp8"])
    weights, own = weights_of(tmp_path / "out"), own_weights(run_dir)
    rest = ("embed_tokens", "head", "norm.weight", "gate.weight", "eh_proj", "layernorm", "enorm", "hnorm")
    for name, weight in own.items():
        stored = weights.pop(name)
        if name.endswith("e_score_correction_bias"):
            assert torch.equal(stored, weight)
        elif any(part in name for part in rest):
            assert torch.equal(stored, weight.bfloat16())
        else:
            assert stored.dtype == torch.float8_e4m3fn
            scales = weights.pop(f"{name}_scale_inv")
            assert scales.dtype == torch.float32
            assert scales.shape == tuple(-(-size // 128) for size in weight.shape)
            for x, y in [(0, 0), (scales.shape[0] - 1, scales.shape[1] - 1)]:
                block = (slice(128 * x, 128 * x + 128), slice(128 * y, 128 * y + 128))
                error = stored[block].float() * scales[x, y] - weight[block]
                assert error.abs().max() <= weight[block].abs().max() * 0.04
    assert not weights
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["quantization_config"] == V3_CONFIG["quantization_config"]
    assert config["torch_dtype"] == "bfloat16"


def test_v3_in_fp8_has_as_many_tensors_and_bytes_as_deepseeks_own_release():
    config = compose(["model=v3_671b"]).config.model
    shapes = build_on_meta(config).state_dict()
    places = release_places(shapes, config.n_layers)
    encoding = ENCODINGS["fp8"]
    n_scales = sum(encoding.dtype_of(name) is torch.float8_e4m3fn for name in places)
    assert len(places) + n_scales == V3_TENSORS
    assert sum(encoding.n_bytes(name, place.of(shapes)) for name, place in places.items()) == V3_BYTES


def test_config_json_is_deepseeks_own_for_v3_and_reads_back(tmp_path):
    config = compose(["model=v3_671b", "model.max_seq_len=163840", "model.init_std=0.02"]).config.model
    written = to_release(config)
    assert written.items() <= (V3_CONFIG | {"rope_interleave": True}).items()
    (tmp_path / "config.json").write_text(json.dumps(V3_CONFIG))
    read = from_release(tmp_path / "config.json")
    assert replace(read, n_kv_heads=config.n_kv_heads, mtp=config.mtp, moe=config.moe) == config


def test_more_dense_layers_than_layers_are_all_of_them_as_in_transformers(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(V3_CONFIG | {"first_k_dense_replace": 99}))
    assert from_release(tmp_path / "config.json").n_dense_layers == 61


def test_shards_are_no_larger_than_asked_and_the_index_tells_of_each(run_dir, tmp_path):
    largest_tensor = max(tensor.nbytes for tensor in own_weights(run_dir).values())
    limit = largest_tensor + 50_000
    export_run(run_dir, tmp_path / "out", Encoding(), max_shard_bytes=limit)
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    total, found = 0, {}
    for file in sorted((tmp_path / "out").glob("*.safetensors")):
        tensors = load_file(file)
        size = sum(tensor.nbytes for tensor in tensors.values())
        assert 0 < size <= limit
        total += size
        found |= dict.fromkeys(tensors, file.name)
    n_files = len(set(found.values()))
    assert n_files > 2
    assert set(found.values()) == {f"model-{i + 1:05d}-of-{n_files:05d}.safetensors" for i in range(n_files)}
    assert index == {"metadata": {"total_size": total}, "weight_map": found}
    with safe_open(tmp_path / "out" / found["lm_head.weight"], "pt") as opened:
        assert opened.metadata() == {"format": "pt"}


@pytest.mark.parametrize("balance", [Balance.none, Balance.aux_loss])
def test_a_gate_without_a_bias_is_exported_with_zeros(balance, tmp_path):
    config = small_model_config(balance=balance)
    model = random_model(config, 0)
    export_run(save_run(tmp_path / "run", model), tmp_path / "out", Encoding())
    biases = [w for name, w in weights_of(tmp_path / "out").items() if name.endswith("bias")]
    assert len(biases) == 3
    assert not torch.cat(biases).any()


YARN = {"max_seq_len": 8192}


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"attention": Attention.mha}, "model.attention=mha"),
        (
            {"score_func": ScoreFunction.softmax, "moe": MoeConfig(balance=Balance.aux_loss)},
            "model.score_func=softmax",
        ),
        ({"n_shared_experts": 0}, "model.n_shared_experts=0"),
        (YARN | {"mscale": 0.0}, "model.mscale=0"),
        (YARN | {"rope_factor": 0.5}, "model.rope_factor=0.5"),
    ],
)
def test_a_model_that_the_layout_cannot_express_is_refused_by_key(changes, key, tmp_path):
    run_dir = save_run(tmp_path / "run", random_model(replace(small_model_config(), **changes), 0))
    with pytest.raises(ValueError, match=f"{key}.* cannot be exported"):
        export_run(run_dir, tmp_path / "out", Encoding())
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("kind", ENCODINGS)
def test_numbers_that_are_not_finite_are_refused_by_name_and_leave_nothing(kind, tmp_path):
    model = random_model(small_model_config(), 0)
    with torch.no_grad():
        model.layers[1].ffn.experts.w2[3, 0, 0] = torch.nan
    run_dir = save_run(tmp_path / "run", model)
    with pytest.raises(ValueError, match=r"model.layers.1.mlp.experts.3.down_proj.weight is not finite"):
        export_run(run_dir, tmp_path / "out", ENCODINGS[kind])
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_tokenizer_with_more_ids_than_the_model_is_refused_naming_both(tmp_path):
    config = replace(small_model_config(), vocab_size=256)
    run_dir = save_run(tmp_path / "run", random_model(config, 0))
    byte_tokenizer().save(run_dir / run_files.TOKENIZER)
    with pytest.raises(
        ValueError, match=r"run/tokenizer.json: has 257 ids, and .*config.yaml vocab_size=256"
    ):
        export_run(run_dir, tmp_path / "out", Encoding())
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_whoever_may_read_one_file_of_an_export_may_read_all(run_dir, tmp_path):
    export_run(run_dir, tmp_path / "out", Encoding())
    assert len({file.stat().st_mode for file in (tmp_path / "out").iterdir()}) == 1


def test_a_damaged_or_missing_checkpoint_is_named(run_dir, tmp_path):
    broken = save_run(tmp_path / "run", random_model(small_model_config(), 0))
    file = broken / "checkpoints/step_00000000/model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"step_00000000/model.safetensors: damaged"):
        export_run(broken, tmp_path / "out", Encoding())
    (broken / "checkpoints/latest").unlink()
    with pytest.raises(ValueError, match=r"checkpoints: no checkpoint yet"):
        export_run(broken, tmp_path / "out", Encoding())
    with pytest.raises(ValueError, match=r"exists already"):
        export_run(run_dir, broken, Encoding())


def test_the_card_tells_what_the_run_recorded(tmp_path):
    corpus = write_corpus(tmp_path / "corpus")
    paths = [f"data.path='{corpus}/*.txt'", f"data.cache_dir='{tmp_path / 'cache'}'"]
    train(load_config(merge([*SMALL, *paths], ["trainer.max_steps=2"])), tmp_path / "run", [])
    export_run(tmp_path / "run", tmp_path / "out", Encoding())
    card = (tmp_path / "out/README.md").read_text()
    header, _, body = card.removeprefix("---\n").partition("---\n")
    assert yaml.safe_load(header)["library_name"] == "transformers"
    summary = run_files.read_summary(tmp_path / "run")
    assert summary is not None
    assert f"| parameters | {summary['total_params']:,} |" in body
    assert f"| best validation bits per byte | {summary['best_val_bpb']:.4g} |" in body
    assert "| steps | 2 |" in body
    assert "| batch | 4 sequences of 32 tokens |" in body
    assert "kv_lora_rank: 16" in body
    assert "model.layers.2" in body
    assert str(tmp_path) not in card

    (tmp_path / "run" / run_files.SUMMARY).write_text("{}")
    export_run(tmp_path / "run", tmp_path / "fp8", ENCODINGS["fp8"])
    card = (tmp_path / "fp8/README.md").read_text()
    assert "validation" not in card
    assert "quantised to E4M3" in card
    assert "accelerate" in card
