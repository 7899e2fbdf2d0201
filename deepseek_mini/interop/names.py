"""The one mapping between our parameter names and those of DeepSeek's releases.

Hugging Face's DeepseekV3ForCausalLM reads the same names. A release differs from our model in three ways:
every expert is a matrix of its own, where ours are slices of a stack; MTP module k is the layer behind the
last one, `model.layers.{n_layers + k}`; and it holds its own copies of the embedding and of the head, which
our model shares. The order of the rotated pairs is the same: interleaved.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

MODEL = {
    "embed.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
}
LAYER = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn.wq.weight": "self_attn.q_proj.weight",
    "attn.wq_a.weight": "self_attn.q_a_proj.weight",
    "attn.q_norm.weight": "self_attn.q_a_layernorm.weight",
    "attn.wq_b.weight": "self_attn.q_b_proj.weight",
    "attn.wkv_a.weight": "self_attn.kv_a_proj_with_mqa.weight",
    "attn.kv_norm.weight": "self_attn.kv_a_layernorm.weight",
    "attn.wkv_b.weight": "self_attn.kv_b_proj.weight",
    "attn.wo.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn.w1.weight": "mlp.gate_proj.weight",
    "ffn.w2.weight": "mlp.down_proj.weight",
    "ffn.w3.weight": "mlp.up_proj.weight",
    "ffn.gate.weight": "mlp.gate.weight",
    "ffn.gate.bias": "mlp.gate.e_score_correction_bias",
    "ffn.experts.w1": "mlp.experts.{expert}.gate_proj.weight",
    "ffn.experts.w2": "mlp.experts.{expert}.down_proj.weight",
    "ffn.experts.w3": "mlp.experts.{expert}.up_proj.weight",
    "ffn.shared_experts.w1.weight": "mlp.shared_experts.gate_proj.weight",
    "ffn.shared_experts.w2.weight": "mlp.shared_experts.down_proj.weight",
    "ffn.shared_experts.w3.weight": "mlp.shared_experts.up_proj.weight",
    "enorm.weight": "enorm.weight",
    "hnorm.weight": "hnorm.weight",
    "eh_proj.weight": "eh_proj.weight",
    "norm.weight": "shared_head.norm.weight",
}
MTP_COPIES = {"embed_tokens.weight": "embed.weight", "shared_head.head.weight": "head.weight"}

GATE_BIAS = ".ffn.gate.bias"


class Place(NamedTuple):
    """Where a tensor of a release lies in our model."""

    parameter: str
    expert: int | None = None
    """Its slice of a stack of experts."""
    is_copy: bool = False
    """An MTP layer's copy of a parameter that has its own place."""

    def of(self, tensors: Mapping[str, Tensor]) -> Tensor:
        tensor = tensors[self.parameter]
        return tensor if self.expert is None else tensor[self.expert]


def release_places(tensors: Mapping[str, Tensor], n_layers: int) -> dict[str, Place]:
    """Every name of the release, and its place among `tensors`, our model's by name."""
    places: dict[str, Place] = {}
    depth = 0
    for parameter, tensor in tensors.items():
        name, mtp = _release_name(parameter, n_layers)
        depth = max(depth, mtp)
        if "{expert}" in name:
            places |= {name.format(expert=e): Place(parameter, e) for e in range(len(tensor))}
        else:
            places[name] = Place(parameter)
    for layer in range(n_layers, n_layers + depth):
        for name, parameter in MTP_COPIES.items():
            places[f"model.layers.{layer}.{name}"] = Place(parameter, is_copy=True)
    return places


def own_places(tensors: Mapping[str, Tensor]) -> dict[str, Place]:
    """The same for our own checkpoints, whose names are the model's."""
    return {name: Place(name) for name in tensors}


def has_layer(names: Mapping[str, object], layer: int) -> bool:
    """Whether a release has any tensor of a layer."""
    return any(name.startswith(f"model.layers.{layer}.") for name in names)


def _release_name(parameter: str, n_layers: int) -> tuple[str, int]:
    """The release's name, with `{expert}` for the number, and the parameter's MTP depth or 0."""
    if parameter in MODEL:
        return MODEL[parameter], 0
    found = re.fullmatch(r"(layers|mtp)\.(\d+)\.(?:block\.)?(.+)", parameter)
    assert found is not None, parameter
    layer = int(found[2]) + (n_layers if found[1] == "mtp" else 0)
    return f"model.layers.{layer}.{LAYER[found[3]]}", max(layer + 1 - n_layers, 0)
