"""ModelConfig to the config.json of a release, and back. What either side cannot express is refused."""

from pathlib import Path
from typing import Any

from deepseek_mini.config import Attention, GroupScore, ModelConfig, MtpConfig, ScoreFunction
from deepseek_mini.interop.files import read_object, shown
from deepseek_mini.model.norm import EPSILON
from deepseek_mini.model.rope import uses_yarn

ARCHITECTURE = "DeepseekV3ForCausalLM"
MODEL_TYPE = "deepseek_v3"

INTEGERS = {
    "vocab_size": "vocab_size",
    "dim": "hidden_size",
    "inter_dim": "intermediate_size",
    "moe_inter_dim": "moe_intermediate_size",
    "n_layers": "num_hidden_layers",
    "n_dense_layers": "first_k_dense_replace",
    "n_heads": "num_attention_heads",
    "n_routed_experts": "n_routed_experts",
    "n_shared_experts": "n_shared_experts",
    "n_activated_experts": "num_experts_per_tok",
    "n_expert_groups": "n_group",
    "n_limited_groups": "topk_group",
    "kv_lora_rank": "kv_lora_rank",
    "qk_nope_head_dim": "qk_nope_head_dim",
    "qk_rope_head_dim": "qk_rope_head_dim",
    "v_head_dim": "v_head_dim",
    "max_seq_len": "max_position_embeddings",
}
NUMBERS = {"route_scale": "routed_scaling_factor", "init_std": "initializer_range"}
FIXED: dict[str, Any] = {
    "hidden_act": "silu",
    "rms_norm_eps": EPSILON,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "norm_topk_prob": True,
    "moe_layer_freq": 1,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "tie_word_embeddings": False,
    "rope_interleave": True,
}
"""What is the same in every model of ours; a config.json that lacks a key means the same."""
YARN_FIXED: dict[str, Any] = {"attention_factor": None, "truncate": True}
LARGEST_INTEGER = 2**31
LARGEST_NUMBER = 1e30


def to_release(config: ModelConfig) -> dict[str, Any]:
    """The content of config.json, in the keys of DeepSeek's release.

    Raises ValueError naming the key for a model that DeepseekV3ForCausalLM cannot express.
    """
    _refuse_inexpressible(config)
    yarn = {
        "type": "yarn",
        "factor": config.rope_factor,
        "original_max_position_embeddings": config.original_seq_len,
        "beta_fast": config.beta_fast,
        "beta_slow": config.beta_slow,
        "mscale": config.mscale,
        "mscale_all_dim": config.mscale,
    }
    return {
        "architectures": [ARCHITECTURE],
        "model_type": MODEL_TYPE,
        **{theirs: getattr(config, ours) for ours, theirs in (INTEGERS | NUMBERS).items()},
        "num_key_value_heads": config.n_heads,
        "q_lora_rank": config.q_lora_rank or None,
        "num_nextn_predict_layers": config.mtp.depth,
        "rope_theta": config.rope_theta,
        "rope_scaling": yarn if uses_yarn(config) else None,
        **FIXED,
    }


def _refuse_inexpressible(config: ModelConfig) -> None:
    yarn = uses_yarn(config)
    obstacles = {
        "attention": config.attention is not Attention.mla,
        "score_func": config.score_func is not ScoreFunction.sigmoid,
        "group_score": config.group_score is not GroupScore.top2 and config.n_expert_groups > 1,
        "n_shared_experts": config.n_shared_experts < 1,
        "n_routed_experts": config.n_routed_experts < 2,
        "mscale": yarn and config.mscale == 0,
        "rope_factor": yarn and config.rope_factor < 1,
    }
    for key, is_obstacle in obstacles.items():
        if is_obstacle:
            raise ValueError(
                f"model.{key}={getattr(config, key)} cannot be exported: {ARCHITECTURE} has no such thing"
            )


def from_release(path: Path) -> ModelConfig:
    """The model that a config.json describes. Raises ValueError naming the file and the key.

    Without YaRN a release does not tell the length of pre-training; ours is then such that YaRN stays off.
    """
    content = read_object(path)
    architectures = content.get("architectures") or [content.get("model_type")]
    if architectures not in ([ARCHITECTURE], [MODEL_TYPE]):
        raise ValueError(
            f"{path}: architecture {shown(architectures)} is not supported, only {ARCHITECTURE} is"
        )
    heads = content.get("num_attention_heads")
    _require_fixed(path, content, FIXED | {"num_key_value_heads": heads})
    _require_known_quantization(path, content.get("quantization_config"))
    fields: dict[str, Any] = {ours: _integer(path, content, theirs) for ours, theirs in INTEGERS.items()}
    fields |= {ours: _number(path, content, theirs) for ours, theirs in NUMBERS.items() if theirs in content}
    fields["n_dense_layers"] = min(fields["n_dense_layers"], fields["n_layers"])
    direct_query = "q_lora_rank" in content and content["q_lora_rank"] is None
    fields["q_lora_rank"] = 0 if direct_query else _integer(path, content, "q_lora_rank")
    depth = _integer(path, {"num_nextn_predict_layers": 0} | content, "num_nextn_predict_layers")
    fields |= _rope(path, content)
    try:
        return ModelConfig(**fields, mtp=MtpConfig(depth=depth))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _rope(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    """Our RoPE keys from either form: rope_theta and rope_scaling, or transformers' rope_parameters."""
    given = content.get("rope_parameters") or content.get("rope_scaling") or {}
    if not isinstance(given, dict):
        raise ValueError(f"{path}: rope_scaling={shown(given)} is not an object")
    rope = {"rope_theta": content.get("rope_theta")} | given
    kind = rope.get("rope_type", rope.get("type", "default"))
    max_seq_len = _integer(path, content, "max_position_embeddings")
    theta = _number(path, rope, "rope_theta")
    if kind == "default":
        return {"rope_theta": theta, "original_seq_len": max(max_seq_len, ModelConfig().original_seq_len)}
    if kind != "yarn":
        raise ValueError(f"{path}: rope type {shown(kind)} is not supported, only default and yarn are")
    _require_fixed(path, rope, YARN_FIXED)
    original = _integer(path, rope, "original_max_position_embeddings")
    if original >= max_seq_len:
        raise ValueError(
            f"{path}: YaRN with max_position_embeddings={max_seq_len}, not above "
            f"original_max_position_embeddings={original}; here it acts beyond the original length only"
        )
    mscale = _number(path, rope, "mscale")
    _require_fixed(path, rope, {"mscale_all_dim": mscale})
    return {
        "rope_theta": theta,
        "original_seq_len": original,
        "rope_factor": _number(path, rope, "factor"),
        "beta_fast": _integer(path, {"beta_fast": 32} | rope, "beta_fast"),
        "beta_slow": _integer(path, {"beta_slow": 1} | rope, "beta_slow"),
        "mscale": mscale,
    }


def _require_known_quantization(path: Path, quantization: dict[str, Any] | None) -> None:
    if quantization is None:
        return
    wanted = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}
    if not isinstance(quantization, dict):
        raise ValueError(f"{path}: quantization_config={shown(quantization)} is not an object")
    _require_fixed(path, quantization, wanted)


def _require_fixed(path: Path, content: dict[str, Any], wanted: dict[str, Any]) -> None:
    for key, value in wanted.items():
        if content.get(key, value) != value:
            raise ValueError(
                f"{path}: {key}={shown(content[key])} is not supported; models here have {value!r}"
            )


def _integer(path: Path, content: dict[str, Any], key: str) -> int:
    value = _number(path, content, key)
    if value != int(value) or abs(value) > LARGEST_INTEGER:
        raise ValueError(f"{path}: {key}={value} must be a whole number, at most {LARGEST_INTEGER}")
    return int(value)


def _number(path: Path, content: dict[str, Any], key: str) -> float:
    value = content.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < LARGEST_NUMBER:
        raise ValueError(f"{path}: {key} must be a number, got {shown(value)}")
    return float(value)
