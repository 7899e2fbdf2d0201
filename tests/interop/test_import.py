"""Imports: DeepSeek's own layout with its FP8 blocks, memory, and files that are not what they say."""

import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import DeepseekV3ForCausalLM

from deepseek_mini import run_files
from deepseek_mini.config import ModelConfig, MtpConfig
from deepseek_mini.data.tokenizer import byte_tokenizer
from deepseek_mini.inference.load import load_model
from deepseek_mini.interop.load import import_release
from interop.helpers import (
    TOLERANCE,
    clear_tokens,
    peer_config,
    random_model,
    random_peer,
    relative_error,
    save_run,
)

CPU = torch.device("cpu")
RELEASE = ModelConfig(
    vocab_size=260, dim=144, inter_dim=150, moe_inter_dim=40, n_layers=3, n_dense_layers=1, n_heads=3,
    n_routed_experts=8, n_activated_experts=3, n_expert_groups=4, n_limited_groups=2, q_lora_rank=20,
    kv_lora_rank=130, qk_nope_head_dim=33, qk_rope_head_dim=8, v_head_dim=30, original_seq_len=16,
    max_seq_len=64, mtp=MtpConfig(depth=0),
)  # fmt: skip
"""Most matrices have edges that are not multiples of 128."""
IN_BF16 = tuple(f"{end}.weight" for end in ("norm", "gate", "eh_proj", "embed_tokens", "head"))


def write_release(folder: Path) -> dict[str, Tensor]:
    """Files as DeepSeek releases them; returns the float32 weights that they stand for.

    The last of transformers' layers becomes the MTP module. Every scale is in another file than its weight.
    """
    peer = random_peer(RELEASE, 0)
    folder.mkdir()
    peer.save_pretrained(folder / "peer", max_shard_size="100GB")
    weights = load_file(folder / "peer/model.safetensors")
    config = json.loads((folder / "peer/config.json").read_text())
    for file in (folder / "peer").iterdir():
        file.unlink()
    (folder / "peer").rmdir()
    config |= {
        "num_hidden_layers": 2, "num_nextn_predict_layers": 1, "topk_method": "noaux_tc",
        "scoring_func": "sigmoid", "torch_dtype": "bfloat16", "auto_map": {"AutoConfig": "evil.py"},
        "rope_theta": 10000, "rope_scaling": config.pop("rope_parameters") | {"type": "yarn"},
        "quantization_config": {
            "activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8",
            "weight_block_size": [128, 128],
        },
    }  # fmt: skip
    mtp = {
        "eh_proj": torch.randn(144, 288), "enorm": torch.rand(144), "hnorm": torch.rand(144),
        "shared_head.norm": torch.rand(144), "embed_tokens": weights["model.embed_tokens.weight"].clone(),
        "shared_head.head": weights["lm_head.weight"].clone(),
    }  # fmt: skip
    weights |= {f"model.layers.2.{name}.weight": tensor for name, tensor in mtp.items()}
    files: list[dict[str, Tensor]] = [{}, {}, {}]
    meant = {}
    for number, (name, weight) in enumerate(sorted(weights.items())):
        if name.endswith("bias"):
            files[number % 3][name] = meant[name] = weight
        elif name.endswith(IN_BF16):
            files[number % 3][name] = weight.bfloat16()
            meant[name] = weight.bfloat16().float()
        else:
            values, scales, meant[name] = quantized(weight)
            files[number % 3][name] = values
            files[(number + 1) % 3][f"{name}_scale_inv"] = scales
    weight_map = {}
    for i, tensors in enumerate(files, start=1):
        file = f"model-{i:05d}-of-000003.safetensors"
        save_file(tensors, folder / file)
        weight_map |= dict.fromkeys(tensors, file)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": 0}, "weight_map": weight_map})
    )
    (folder / "config.json").write_text(json.dumps(config))
    byte_tokenizer().save(folder / "tokenizer.json")
    return meant


def quantized(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """E4M3 values, block scales and what they mean, block by block."""
    n, k = weight.shape
    values, meant = torch.empty(n, k, dtype=torch.float8_e4m3fn), torch.empty(n, k)
    scales = torch.empty(-(-n // 128), -(-k // 128))
    for x in range(scales.shape[0]):
        for y in range(scales.shape[1]):
            block = (slice(128 * x, 128 * x + 128), slice(128 * y, 128 * y + 128))
            scales[x, y] = 1.1 * weight[block].abs().max() / 448
            values[block] = (weight[block] / scales[x, y]).to(torch.float8_e4m3fn)
            meant[block] = values[block].float() * scales[x, y]
    return values, scales, meant


@pytest.fixture(scope="module")
def release(tmp_path_factory) -> tuple[Path, dict[str, Tensor]]:
    folder = tmp_path_factory.mktemp("release") / "in"
    return folder, write_release(folder)


@pytest.fixture
def copy(release, tmp_path) -> Path:
    """A release of one's own to spoil."""
    folder = tmp_path / "in"
    folder.mkdir()
    for file in release[0].iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def test_deepseeks_own_layout_means_the_same_model_as_in_transformers(release, tmp_path):
    """FP8 blocks with ragged edges, scales in other files, experts one by one, YaRN, and MTP."""
    folder, meant = release
    import_release(folder, tmp_path / "run")
    config = run_files.read_config(tmp_path / "run")
    assert config.model.n_layers == 2
    assert config.model.mtp.depth == 1
    assert config.data.tokenizer == str(tmp_path / "run/tokenizer.json")
    model = load_model(tmp_path / "run", config.model, CPU)

    two_layers = peer_config(RELEASE)
    two_layers.num_hidden_layers = 2
    peer = DeepseekV3ForCausalLM(two_layers).eval()
    peer.set_experts_implementation("eager")
    named = dict(peer.named_parameters()) | dict(peer.named_buffers())
    with torch.no_grad():
        for name, tensor in named.items():
            if name in meant:
                tensor.copy_(meant[name])
            elif name.endswith(("gate_up_proj", "down_proj")):
                experts = name.rpartition(".")[0]
                parts = ("gate_proj", "up_proj") if name.endswith("gate_up_proj") else ("down_proj",)
                for e in range(RELEASE.n_routed_experts):
                    tensor[e] = torch.cat([meant[f"{experts}.{e}.{part}.weight"] for part in parts])
        tokens_BT = clear_tokens(model, 40)
        assert relative_error(model(tokens_BT), peer(tokens_BT).logits) < TOLERANCE

    state = model.state_dict()
    for ours, theirs in {
        "mtp.0.eh_proj.weight": "eh_proj.weight",
        "mtp.0.enorm.weight": "enorm.weight",
        "mtp.0.norm.weight": "shared_head.norm.weight",
        "mtp.0.block.attn.wkv_a.weight": "self_attn.kv_a_proj_with_mqa.weight",
        "mtp.0.block.ffn.gate.bias": "mlp.gate.e_score_correction_bias",
    }.items():
        assert torch.equal(state[ours], meant[f"model.layers.2.{theirs}"])
    w2 = torch.stack([meant[f"model.layers.2.mlp.experts.{e}.down_proj.weight"] for e in range(8)])
    assert torch.equal(state["mtp.0.block.ffn.experts.w2"], w2)


def test_an_import_is_a_run_directory(release, tmp_path):
    import_release(release[0], tmp_path / "run")
    names = sorted(str(p.relative_to(tmp_path / "run")) for p in (tmp_path / "run").rglob("*") if p.is_file())
    assert names == [
        "checkpoints/latest",
        "checkpoints/step_00000000/model.safetensors",
        "config.yaml",
        "tokenizer.json",
    ]
    newest = run_files.latest_checkpoint(tmp_path / "run/checkpoints")
    assert newest is not None
    assert {t.dtype for t in load_file(newest / "model.safetensors").values()} == {torch.float32}
    assert (newest / "model.safetensors").stat().st_mode == (tmp_path / "run/config.yaml").stat().st_mode
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_copies_of_embedding_and_head_may_be_left_out(copy, tmp_path):
    for name in ("model.layers.2.embed_tokens.weight", "model.layers.2.shared_head.head.weight"):
        edit_tensor(copy, name, None)
    import_release(copy, tmp_path / "run")


def test_scales_may_be_powers_of_two_in_a_byte(copy, tmp_path):
    edit_tensor(copy, f"{Q_A}_scale_inv", torch.tensor([[0.25, 2.0]]).to(torch.float8_e8m0fnu))
    weight_map = json.loads((copy / INDEX).read_text())["weight_map"]
    values = load_file(copy / weight_map[Q_A])[Q_A].float()
    import_release(copy, tmp_path / "run")
    imported = load_file(tmp_path / "run/checkpoints/step_00000000/model.safetensors")
    expected = torch.cat((values[:, :128] * 0.25, values[:, 128:] * 2.0), dim=1)
    assert torch.equal(imported["layers.0.attn.wq_a.weight"], expected)


MEMORY = """
import resource, sys
from pathlib import Path
import torch
from deepseek_mini.interop.export import Encoding, export_run
from deepseek_mini.interop.load import import_release
folder = Path(sys.argv[1])
export_run(folder / "run", folder / "warm", Encoding(), 8_000_000)  # and what Python loads on the way
def grown(work):
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # forget the peak so far
    before = memory("VmRSS")
    work()
    return memory("VmHWM") - before
def memory(key):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key))
export = lambda: export_run(folder / "run", folder / "out", Encoding(), 8_000_000)
load = lambda: import_release(folder / "out", folder / "imported")
print(*[grown(work) for work in (export, load)])
"""


def test_import_holds_the_model_and_one_file_and_export_one_file(tmp_path):
    config = ModelConfig(
        vocab_size=64, dim=256, inter_dim=8, moe_inter_dim=256, n_layers=2, n_dense_layers=0, n_heads=1,
        n_routed_experts=64, q_lora_rank=0, kv_lora_rank=4, qk_nope_head_dim=4, qk_rope_head_dim=4,
        v_head_dim=4, mtp=MtpConfig(depth=0),
    )  # fmt: skip
    model = random_model(config, 0)
    megabytes = sum(p.nbytes for p in model.parameters()) / 2**20
    assert megabytes > 90
    save_run(tmp_path / "run", model)
    command = [sys.executable, "-c", MEMORY, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    exported, imported = map(float, done.stdout.split())
    assert exported < 4 * 8
    assert megabytes - 8 < imported < megabytes + 4 * 8


INDEX = "model.safetensors.index.json"
SECOND = "model-00002-of-000003.safetensors"


def edit_json(path: Path, **changes: Any) -> None:
    """Change keys; None takes one out."""
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not REMOVED}))


REMOVED = object()


def edit_tensor(folder: Path, name: str, tensor: Tensor | None, indexed: bool = True) -> None:
    """Put another tensor into the file that has it, the second one if none has; None takes it out."""
    weight_map = json.loads((folder / INDEX).read_text())["weight_map"]
    file = weight_map.get(name, SECOND)
    tensors = load_file(folder / file) | {name: tensor}
    weight_map[name] = file
    if tensor is None:
        del tensors[name], weight_map[name]
    save_file({key: t.clone() for key, t in tensors.items()}, folder / file)
    if indexed:
        edit_json(folder / INDEX, weight_map=weight_map)


def edit_index(folder: Path, name: str, file: object) -> None:
    weight_map = json.loads((folder / INDEX).read_text())["weight_map"]
    edit_json(folder / INDEX, weight_map=weight_map | {name: file})


def raw_header(folder: Path, header: bytes, data: bytes = b"", length: int | None = None) -> None:
    """A file with this header in place of the second one."""
    size = (len(header) if length is None else length).to_bytes(8, "little")
    (folder / SECOND).write_bytes(size + header + data)


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("evil"),))


def only_a_pickle(folder: Path) -> None:
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Evil()))


def tokenizer_of_words(folder: Path) -> None:
    core = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0, "</s>": 1}, unk_token="<unk>"))
    core.save(str(folder / "tokenizer.json"))


def tokenizer_with_a_last_id(folder: Path) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["vocab"]["zz"] = 2**32 - 1
    (folder / "tokenizer.json").write_text(json.dumps(content))


EMBED = "model.embed_tokens.weight"
Q_A = "model.layers.0.self_attn.q_a_proj.weight"
ONE = b'"a":{"dtype":"F32","shape":[1],"data_offsets":[%d,%d]}'
DUPLICATE = b"{" + ONE % (0, 4) + b"," + ONE % (4, 8) + b"}"
BAD_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing shard": (lambda f: (f / SECOND).unlink(), f"{SECOND}: no such file"),
    "truncated shard": (
        lambda f: (f / SECOND).write_bytes((f / SECOND).read_bytes()[:-1]),
        f"{SECOND}: damaged",
    ),
    "empty shard": (lambda f: (f / SECOND).write_bytes(b""), f"{SECOND}: damaged"),
    "shard is a directory": (lambda f: ((f / SECOND).unlink(), (f / SECOND).mkdir()), f"{SECOND}: damaged"),
    "pickle as a shard": (lambda f: (f / SECOND).write_bytes(pickle.dumps(Evil())), f"{SECOND}: damaged"),
    "only a pickle": (only_a_pickle, "only safetensors are read, no pickles"),
    "huge header": (lambda f: raw_header(f, b"{}", length=2**40), f"{SECOND}: damaged"),
    "header is no JSON": (lambda f: raw_header(f, b"[[[["), f"{SECOND}: damaged"),
    "duplicate in a header": (lambda f: raw_header(f, DUPLICATE, bytes(8)), f"{SECOND}: "),
    "offsets beyond the file": (
        lambda f: raw_header(f, b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}', bytes(8)),
        f"{SECOND}: damaged",
    ),
    "index above": (
        lambda f: edit_index(f, EMBED, f"../{SECOND}"),
        f"{EMBED} is said to be in '../{SECOND}'",
    ),
    "index elsewhere": (lambda f: edit_index(f, EMBED, "/etc/x.safetensors"), f"{EMBED} is said to be in"),
    "index names no safetensors": (
        lambda f: edit_index(f, EMBED, "config.json"),
        "'config.json', which is not",
    ),
    "index names a number": (lambda f: edit_index(f, EMBED, 3), f"{EMBED} is said to be in 3"),
    "index is no JSON": (lambda f: (f / INDEX).write_text("{"), f"{INDEX}: damaged or not JSON"),
    "index is a list": (lambda f: (f / INDEX).write_text("[]"), f"{INDEX}: holds no JSON object"),
    "index nests without end": (
        lambda f: (f / INDEX).write_text("[" * 10**6),
        f"{INDEX}: damaged or not JSON",
    ),
    "index without a map": (
        lambda f: edit_json(f / INDEX, weight_map=REMOVED),
        f"{INDEX}: has no weight_map",
    ),
    "index tells too much": (
        lambda f: edit_index(f, "model.layers.9.x", SECOND),
        f"{SECOND}: tensor model.layers.9.x is missing",
    ),
    "index tells too little": (
        lambda f: edit_tensor(f, "stowaway", torch.zeros(1), indexed=False),
        f"{SECOND}: tensor stowaway is there, and {INDEX} does not tell",
    ),
    "tensor in two files": (
        lambda f: (f / "model-00003-of-000003.safetensors").write_bytes((f / SECOND).read_bytes()),
        "model-00003-of-000003.safetensors: tensor .* is in model-00002-of-000003.safetensors as well",
    ),
    "unknown tensor": (
        lambda f: edit_tensor(f, "model.layers.0.self_attn.q_proj.bias", torch.zeros(1)),
        f"{SECOND}: tensor model.layers.0.self_attn.q_proj.bias is no part of this model",
    ),
    "missing tensor": (lambda f: edit_tensor(f, EMBED, None), f"tensor {EMBED} is missing"),
    "missing expert": (
        lambda f: [
            edit_tensor(f, f"model.layers.1.mlp.experts.7.up_proj.weight{end}", None)
            for end in ("", "_scale_inv")
        ],
        "tensor model.layers.1.mlp.experts.7.up_proj.weight is missing",
    ),
    "wrong shape": (
        lambda f: edit_tensor(f, EMBED, torch.zeros(260, 143)),
        rf"\d-of-000003.safetensors: tensor {EMBED} has shape \[260, 143\], .* \[260, 144\]; check config",
    ),
    "integers": (
        lambda f: edit_tensor(f, EMBED, torch.zeros(260, 144, dtype=torch.int32)),
        f"tensor {EMBED} has dtype I32",
    ),
    "FP8 without scales": (
        lambda f: edit_tensor(f, f"{Q_A}_scale_inv", None),
        f"tensor {Q_A}_scale_inv is missing",
    ),
    "scales of another shape": (
        lambda f: edit_tensor(f, f"{Q_A}_scale_inv", torch.zeros(1, 1)),
        rf"tensor {Q_A}_scale_inv has shape \[1, 1\], .* \[1, 2\]",
    ),
    "scales of nothing": (
        lambda f: edit_tensor(f, f"{EMBED}_scale_inv", torch.zeros(3, 2)),
        f"tensor {EMBED}_scale_inv is no part of this model",
    ),
    "FP8 vector": (
        lambda f: edit_tensor(f, "model.norm.weight", torch.zeros(144).to(torch.float8_e4m3fn)),
        "tensor model.norm.weight has dtype F8_E4M3",
    ),
    "scale that is not finite": (
        lambda f: edit_tensor(f, f"{Q_A}_scale_inv", torch.tensor([[1.0, torch.nan]])),
        f"tensor {Q_A} is not finite",
    ),
    "number beyond float32": (
        lambda f: edit_tensor(f, "model.norm.weight", torch.full((144,), 1e300, dtype=torch.float64)),
        "tensor model.norm.weight is not finite",
    ),
    "name with an escape": (
        lambda f: edit_tensor(f, "\x1b[2Jgone", torch.zeros(1)),
        r"'\\x1b\[2Jgone' is no name of a tensor",
    ),
    "name with an escape that only the shard has": (
        lambda f: edit_tensor(f, "\x1b[2Jgone", torch.zeros(1), indexed=False),
        rf"{SECOND}: '\\x1b\[2Jgone' is no name of a tensor",
    ),
    "name without end": (lambda f: edit_tensor(f, "x" * 10**5, torch.zeros(1)), "xxx is no name of a tensor"),
    "another copy": (
        lambda f: edit_tensor(f, "model.layers.2.shared_head.head.weight", torch.zeros(260, 144)),
        "is another than head.weight",
    ),
    "tokenizer too large": (
        lambda f: (
            byte_tokenizer().save(f / "tokenizer.json"),
            edit_json(f / "config.json", vocab_size=200),
            edit_tensor(f, EMBED, torch.zeros(200, 144)),
            edit_tensor(f, "lm_head.weight", torch.zeros(200, 144)),
            edit_tensor(f, "model.layers.2.embed_tokens.weight", None),
            edit_tensor(f, "model.layers.2.shared_head.head.weight", None),
        ),
        "tokenizer.json: has 257 ids, and .*config.json vocab_size=200 only",
    ),
    "tokenizer that loses text": (tokenizer_of_words, "tokenizer.json cannot be used"),
    "tokenizer with one id of many": (tokenizer_with_a_last_id, "tokenizer.json: has 4294967296 ids"),
    "tokenizer is no JSON": (
        lambda f: (f / "tokenizer.json").write_text("?"),
        "tokenizer.json is not a tokenizer",
    ),
    "no config": (lambda f: (f / "config.json").unlink(), "config.json: no such file"),
    "config is no JSON": (lambda f: (f / "config.json").write_text("{"), "config.json: damaged or not JSON"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_files_are_named_and_leave_nothing_behind(kind, copy, tmp_path):
    spoil, message = BAD_FILES[kind]
    spoil(copy)
    with pytest.raises(ValueError, match=message) as raised:
        import_release(copy, tmp_path / "run")
    assert len(str(raised.value)) < 1000
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


BAD_KEYS: dict[str, Any] = {
    "architectures": ["DeepseekV2ForCausalLM"],
    "hidden_act": "gelu",
    "rms_norm_eps": 1e-5,
    "scoring_func": "softmax",
    "topk_method": "group_limited_greedy",
    "norm_topk_prob": False,
    "moe_layer_freq": 2,
    "attention_bias": True,
    "tie_word_embeddings": True,
    "rope_interleave": False,
    "num_key_value_heads": 1,
    "quantization_config": {"quant_method": "gptq"},
    "hidden_size": 144.5,
    "vocab_size": "260",
    "n_group": None,
    "num_experts_per_tok": True,
    "routed_scaling_factor": float("nan"),
    "num_hidden_layers": 10**9,
    "moe_intermediate_size": 10**400,
    "kv_lora_rank": REMOVED,
    "topk_group": 9,
    "max_position_embeddings": 16,
    "rope_scaling": {"type": "linear", "factor": 2.0},
}


@pytest.mark.parametrize("key", BAD_KEYS)
def test_a_config_that_is_not_ours_is_refused_by_key(key, copy, tmp_path):
    edit_json(copy / "config.json", **{key: BAD_KEYS[key]})
    named = {"architectures": "architecture", "topk_group": "n_limited_groups", "rope_scaling": "rope type"}
    named |= {"num_hidden_layers": "1000000000 layers", "quantization_config": "quant_method"}
    with pytest.raises(ValueError, match=rf"in/config.json: .*{named.get(key, key)}"):
        import_release(copy, tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": 5}, "architecture 5"),
        ({"architectures": "AlmostDeepseekV3ForCausalLM"}, "architecture 'Almost"),
        ({"architectures": ["DeepseekV3ForCausalLM", "LlamaForCausalLM"]}, "architecture .*Llama"),
        ({"architectures": ["x" * 10**5]}, "architecture .*xxx is not supported"),
        ({"hidden_act": "x" * 10**5}, "hidden_act='x"),
        ({"rope_scaling": 5}, "rope_scaling=5 is not an object"),
        ({"rope_scaling": ["yarn"]}, "rope_scaling=.* is not an object"),
        ({"quantization_config": [1]}, "quantization_config=.* is not an object"),
        ({"hidden_size": 2**31, "intermediate_size": 2**31}, "tells of 2 layers and .* parameters"),
    ],
)
def test_values_that_nothing_can_be_made_of_are_refused_by_key(changes, message, copy, tmp_path):
    edit_json(copy / "config.json", **changes)
    with pytest.raises(ValueError, match=rf"in/config.json: {message}") as raised:
        import_release(copy, tmp_path / "run")
    assert len(str(raised.value)) < 1000


@pytest.mark.parametrize(
    "changes", [{"mscale_all_dim": 0.5}, {"attention_factor": 2.0}, {"truncate": False}, {"beta_fast": 3.5}]
)
def test_yarn_of_another_kind_is_refused_by_key(changes, copy, tmp_path):
    rope = json.loads((copy / "config.json").read_text())["rope_scaling"]
    edit_json(copy / "config.json", rope_scaling=rope | changes)
    with pytest.raises(ValueError, match=f"in/config.json: {next(iter(changes))}"):
        import_release(copy, tmp_path / "run")


def test_what_stands_at_out_is_never_touched(release, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/mine").write_text("precious")
    (tmp_path / "file").write_text("precious")
    for out in (tmp_path / "run", tmp_path / "file"):
        with pytest.raises(ValueError, match="exists already"):
            import_release(release[0], out)
    with pytest.raises(ValueError, match="cannot be written"):
        import_release(release[0], tmp_path / "file/run")
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == [
        "file",
        "run",
        "run/mine",
    ]


def test_an_error_while_writing_leaves_nothing(release, tmp_path, monkeypatch):
    def full(*_):
        assert not (tmp_path / "run").exists()  # so a process that is killed here leaves no half of it
        raise OSError("No space left on device")

    monkeypatch.setattr("deepseek_mini.interop.load.write_run", full)
    with pytest.raises(ValueError, match=r"run: cannot be written \(No space left"):
        import_release(release[0], tmp_path / "run")
    assert not list(tmp_path.iterdir())
