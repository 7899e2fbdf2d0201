"""Ours against Hugging Face transformers' independent DeepSeek-V3, through files, both ways."""

import logging
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, DeepseekV3ForCausalLM
from transformers import __version__ as transformers_version
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter

from deepseek_mini import run_files
from deepseek_mini.config import GroupScore, ModelConfig, MtpConfig
from deepseek_mini.data.tokenizer import byte_tokenizer, load_tokenizer, train_bpe
from deepseek_mini.inference.load import load_model
from deepseek_mini.interop.export import Encoding, export_run
from deepseek_mini.interop.load import import_release
from deepseek_mini.model.router import Gate
from deepseek_mini.model.transformer import Transformer
from deepseek_mini.precision.blocks import dequantize_weight, quantize_weight
from interop.helpers import (
    TOLERANCE,
    clear_tokens,
    files_of,
    peer_config,
    random_config,
    random_model,
    random_peer,
    relative_error,
    save_run,
)
from oracles.router import largest

CONFIGS = range(32)
SHARD_BYTES = 20_000
N_TOKENS = 40
"""More than the 16 of the random models whose YaRN acts beyond the original length."""


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """Nothing here may ask the network; what transformers says of its progress is of no interest."""

    def refuse(*_):
        raise AssertionError("asked for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    logging.getLogger("transformers").setLevel(logging.ERROR)


def load_peer(out: Path) -> DeepseekV3ForCausalLM:
    """What AutoModelForCausalLM makes of an export: nothing missing, nothing but MTP left out."""
    peer, info = AutoModelForCausalLM.from_pretrained(
        out, output_loading_info=True, experts_implementation="eager", trust_remote_code=False
    )
    assert isinstance(peer, DeepseekV3ForCausalLM)
    assert not info["missing_keys"]
    assert not info["mismatched_keys"]
    n_layers = peer.config.num_hidden_layers
    assert all(int(key.split(".")[2]) >= n_layers for key in info["unexpected_keys"])
    return peer.eval()


class Exported(NamedTuple):
    """A random model, and where its run and its export lie."""

    seed: int
    model: Transformer
    folder: Path


@pytest.fixture(scope="module", params=CONFIGS)
def exported(request, tmp_path_factory) -> Exported:
    model = random_model(random_config(request.param), request.param)
    folder = tmp_path_factory.mktemp("exported")
    export_run(save_run(folder / "run", model), folder / "out", Encoding(), SHARD_BYTES)
    return Exported(request.param, model, folder)


def test_transformers_has_our_logits_from_our_export(exported):
    tokens_BT = clear_tokens(exported.model, N_TOKENS, exported.seed)
    peer = load_peer(exported.folder / "out")
    with torch.no_grad():
        assert relative_error(peer(tokens_BT).logits, exported.model(tokens_BT)) < TOLERANCE


def test_export_import_and_export_again_give_the_same_bytes(exported, tmp_path):
    import_release(exported.folder / "out", tmp_path / "run")
    export_run(tmp_path / "run", tmp_path / "out", Encoding(), SHARD_BYTES)
    folders = (exported.folder, tmp_path)
    once, twice = (files_of(folder / "out", "*.safetensors", "*.json") for folder in folders)
    trained, back = (files_of(folder / "run/checkpoints/step_00000000", "*") for folder in folders)
    assert len(once) > 4
    assert once == twice
    assert trained == back


@pytest.mark.parametrize("seed", CONFIGS)
def test_we_have_the_logits_of_what_transformers_saved(seed, tmp_path):
    config = random_config(seed)
    peer = random_peer(config, seed)
    peer.save_pretrained(tmp_path / "in", max_shard_size="20KB")
    import_release(tmp_path / "in", tmp_path / "run")
    imported = run_files.read_config(tmp_path / "run").model
    model = load_model(tmp_path / "run", imported, torch.device("cpu"))
    assert imported.mtp.depth == 0  # transformers tells of a module in config.json, and saves none
    tokens_BT = clear_tokens(model, N_TOKENS, seed)
    with torch.no_grad():
        assert relative_error(model(tokens_BT), peer(tokens_BT).logits) < TOLERANCE


def test_the_random_models_cover_what_they_should():
    configs = [random_config(seed) for seed in CONFIGS]
    assert {c.n_expert_groups for c in configs} == {1, 2, 4, 8}
    assert {c.n_shared_experts for c in configs} == {1, 2}
    assert {bool(c.q_lora_rank) for c in configs} == {True, False}
    assert max(c.n_dense_layers for c in configs) > 1
    yarn = {(c.max_seq_len > c.original_seq_len, c.original_seq_len < N_TOKENS) for c in configs}
    assert yarn == {(False, False), (True, True), (True, False)}


@pytest.mark.parametrize("seed", [0, 7, 14])
def test_gradients_agree_with_transformers(seed, tmp_path):
    model = random_model(random_config(seed), seed)
    export_run(save_run(tmp_path / "run", model), tmp_path / "out", Encoding())
    peer = load_peer(tmp_path / "out")
    tokens_BT = clear_tokens(model, N_TOKENS)
    model(tokens_BT).square().mean().backward()
    peer(tokens_BT).logits.square().mean().backward()
    ours, theirs = model.embed.weight.grad, peer.model.embed_tokens.weight.grad
    assert ours is not None
    assert ((ours - theirs).norm() / theirs.norm()) < 1e-4


def test_mtp_layers_stand_where_the_release_has_them_and_compute_the_same(tmp_path):
    """By transformers' own decoder layer: layer n_layers + k of the files, around which the rest is V3's."""
    config = random_config(14)
    assert config.mtp.depth == 2
    model = random_model(config, 1)
    export_run(save_run(tmp_path / "run", model), tmp_path / "out", Encoding(), max_shard_bytes=10**9)
    (file,) = (tmp_path / "out").glob("*.safetensors")
    weights = load_file(file)
    peer = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", num_hidden_layers=config.n_layers + 2, experts_implementation="eager"
    ).eval()
    tokens_BS = clear_tokens(model, 20)
    with torch.no_grad():
        predictions, _ = model.predict(tokens_BS, torch.zeros_like(tokens_BS))
        hidden_BUD, _ = model.trunk(tokens_BS[:, :-1])
        for depth in (1, 2):
            prefix = f"model.layers.{config.n_layers + depth - 1}."
            w = {name.removeprefix(prefix): t for name, t in weights.items() if name.startswith(prefix)}
            embedded_BUD = w["embed_tokens.weight"][tokens_BS[:, depth:-1]]
            hidden_BUD = hidden_BUD[:, : embedded_BUD.shape[1]]
            x_BUD = torch.cat(
                (rms_norm(embedded_BUD, w["enorm.weight"]), rms_norm(hidden_BUD, w["hnorm.weight"])), -1
            )
            x_BUD = x_BUD @ w["eh_proj.weight"].T
            positions_1U = torch.arange(x_BUD.shape[1])[None]
            rotation = peer.model.rotary_emb(x_BUD, positions_1U)
            hidden_BUD = peer.model.layers[config.n_layers + depth - 1](x_BUD, position_embeddings=rotation)
            logits_BUV = rms_norm(hidden_BUD, w["shared_head.norm.weight"]) @ w["shared_head.head.weight"].T
            assert relative_error(model.head(predictions[depth].hidden_BUD), logits_BUV) < TOLERANCE


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight


@pytest.mark.parametrize(
    "tokenizer", [byte_tokenizer(), train_bpe(["a cat sat on the mat, a cat sat"] * 3, 280)]
)
def test_auto_tokenizer_gives_our_tokens(tokenizer, tmp_path):
    model = random_model(replace(random_config(0), vocab_size=tokenizer.size), 0)
    tokenizer.save(save_run(tmp_path / "run", model) / run_files.TOKENIZER)
    export_run(tmp_path / "run", tmp_path / "out", Encoding())
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out", trust_remote_code=False)
    for text in ("a cat sat on the mat", "  def f(x):\n\treturn 12345  # \u4e2d\u6587 \U0001f642", ""):
        assert theirs(text)["input_ids"] == tokenizer.encode(text)
        assert theirs.decode(tokenizer.encode(text)) == text
    assert theirs.eos_token_id == tokenizer.eos_id
    assert theirs.model_max_length == model.config.max_seq_len
    peer = load_peer(tmp_path / "out")
    assert peer.generation_config.eos_token_id == peer.config.eos_token_id == tokenizer.eos_id
    assert load_tokenizer(tmp_path / "out" / "tokenizer.json").identity() == tokenizer.identity()


def both_choices(config: ModelConfig, bias: float) -> tuple[list[set[int]], list[set[int]], Tensor]:
    """Experts that our gate and transformers' router choose for 200 tokens, and the biased scores."""
    generator = torch.Generator().manual_seed(0)
    gate = Gate(config)
    router = DeepseekV3TopkRouter(peer_config(config))
    weight_ED = torch.randn(gate.weight.shape, generator=generator)
    x_ND = torch.randn(200, config.dim, generator=generator)
    with torch.no_grad():
        for module, buffer in ((gate, gate.bias), (router, router.e_score_correction_bias)):
            module.weight.copy_(weight_ED)
            buffer.fill_(bias)
        ours = gate(x_ND)
        theirs = router(x_ND)[-1]
    return (
        [set(row) for row in ours.experts_NK.tolist()],
        [set(row) for row in theirs.tolist()],
        ours.scores_NE + bias,
    )


ROUTED: dict[str, Any] = {
    "dim": 16, "n_routed_experts": 16, "n_expert_groups": 4, "n_limited_groups": 2, "n_activated_experts": 6,
    "vocab_size": 20, "inter_dim": 8, "moe_inter_dim": 4, "n_layers": 1, "n_dense_layers": 0, "n_heads": 1,
    "q_lora_rank": 0, "kv_lora_rank": 4, "qk_nope_head_dim": 4, "qk_rope_head_dim": 4, "v_head_dim": 4,
    "mtp": MtpConfig(depth=0),
}  # fmt: skip


def test_groups_not_chosen_are_excluded_although_transformers_before_5_17_lets_them_in():
    """Below 0, a mask of 0 (as transformers had) is larger than the scores of the chosen groups."""
    config = ModelConfig(**ROUTED)
    ours, theirs, biased_NE = both_choices(config, bias=-2.0)
    masks = {fill: [choose(row, config, 2, fill) for row in biased_NE.tolist()] for fill in (0.0, -torch.inf)}
    assert masks[0.0] != masks[-torch.inf]
    assert ours == masks[-torch.inf]
    version = tuple(map(int, transformers_version.split(".")[:2]))
    assert theirs == masks[0.0 if version < (5, 17) else -torch.inf]


def test_a_groups_score_is_its_two_best_in_transformers_as_in_the_release_whatever_the_paper_says(tmp_path):
    """The paper's text sums the best K_r / M, here 3; DeepSeek's code takes 2, or 1 if there is no bias."""
    config = ModelConfig(**ROUTED)
    ours, theirs, biased_NE = both_choices(config, bias=0.1)
    by_rule = {n: [choose(row, config, n, -torch.inf) for row in biased_NE.tolist()] for n in (1, 2, 3)}
    assert ours == theirs == by_rule[2]
    assert by_rule[3] != by_rule[2] != by_rule[1]

    best_one = ModelConfig(**ROUTED, group_score=GroupScore.max)
    assert both_choices(best_one, bias=0.1)[0] == by_rule[1]
    run = save_run(tmp_path / "run", Transformer(best_one))
    with pytest.raises(ValueError, match=r"model.group_score=max cannot be exported"):
        export_run(run, tmp_path / "out", Encoding())


def test_scales_of_a_part_of_a_block_are_the_releases_although_transformers_mistakes_or_refuses_them():
    """DeepSeek's blocks have 128 rows but for the last (its inference/kernel.py); transformers 5.23 divides
    the rows by the number of blocks, which V3's own 576 do not allow."""
    weight_NK = torch.randn(160, 256, generator=torch.Generator().manual_seed(0))
    weight_NK[80:128] *= 9
    values, scales = quantize_weight(weight_NK)
    scale_XK = scales.repeat_interleave(128, dim=1)
    released_NK, equal_NK = (scale_XK.repeat_interleave(rows, dim=0)[:160] for rows in (128, 80))
    theirs = Fp8Dequantize(None).convert({"weight": values, "weight_scale_inv": scales})["weight"]
    assert torch.equal(dequantize_weight(values, scales), values.float() * released_NK)
    assert torch.equal(theirs, values.float() * equal_NK)
    assert not torch.equal(released_NK, equal_NK)
    values, scales = quantize_weight(torch.ones(576, 128))
    with pytest.raises(ValueError, match="not divisible"):
        Fp8Dequantize(None).convert({"weight": values, "weight_scale_inv": scales})


def choose(biased: list[float], config: ModelConfig, n_best: int, fill: float) -> set[int]:
    """The experts of a token, if a group's score is its `n_best` and other groups' experts score `fill`."""
    size = config.experts_per_group
    groups = [biased[g * size : (g + 1) * size] for g in range(config.n_expert_groups)]
    kept, _ = largest([sum(sorted(group)[-n_best:]) for group in groups], config.n_limited_groups)
    masked = [score if e // size in kept else fill for e, score in enumerate(biased)]
    return set(largest(masked, config.n_activated_experts)[0])
