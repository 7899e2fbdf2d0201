"""The published models, built on the meta device, have exactly the parameters that were released."""

from typing import Any

import pytest
import torch

from deepseek_mini.config import Balance, GroupScore, ModelConfig, MoeConfig, MtpConfig, ScoreFunction
from deepseek_mini.model.transformer import Transformer

V2: dict[str, Any] = {
    "vocab_size": 102400, "n_dense_layers": 1, "n_shared_experts": 2, "n_activated_experts": 6,
    "score_func": ScoreFunction.softmax, "group_score": GroupScore.max, "mscale": 0.707,
    "moe": MoeConfig(balance=Balance.aux_loss), "mtp": MtpConfig(depth=0),
}  # fmt: skip
V2_236B = ModelConfig(
    dim=5120, inter_dim=12288, moe_inter_dim=1536, n_layers=60, n_routed_experts=160, n_limited_groups=3,
    route_scale=16.0, **V2,
)  # fmt: skip
V2_LITE_16B = ModelConfig(
    dim=2048, inter_dim=10944, moe_inter_dim=1408, n_layers=27, n_heads=16, n_routed_experts=64,
    n_expert_groups=1, n_limited_groups=1, route_scale=1.0, q_lora_rank=0, **V2,
)  # fmt: skip


def sizes(config: ModelConfig) -> dict[str, int]:
    """Numbers in each entry of the state: parameters, and the gate biases, which are released too."""
    with torch.device("meta"):
        model = Transformer(config)
    return {name: tensor.numel() for name, tensor in model.state_dict().items()}


def summed(sizes: dict[str, int], *fragments: str) -> int:
    return sum(size for name, size in sizes.items() if any(fragment in name for fragment in fragments))


@pytest.mark.parametrize(
    ("config", "main", "mtp"),
    [
        pytest.param(ModelConfig(), 671_026_419_200, 11_610_068_224, id="v3_671b"),
        pytest.param(V2_236B, 235_741_434_880, 0, id="v2_236b"),
        pytest.param(V2_LITE_16B, 15_706_484_224, 0, id="v2_lite_16b"),
    ],
)
def test_published_models_have_their_number_of_parameters(config: ModelConfig, main: int, mtp: int) -> None:
    of = sizes(config)
    assert summed({name: size for name, size in of.items() if not name.startswith("mtp.")}, "") == main
    assert summed({name: size for name, size in of.items() if name.startswith("mtp.")}, "") == mtp


def test_components_of_v3_have_their_number_of_parameters() -> None:
    of = {name: size for name, size in sizes(ModelConfig()).items() if not name.startswith("mtp.")}
    assert summed(of, "embed.") == summed(of, "head.") == 926_679_040
    assert summed(of, ".attn.") == 11_413_547_008
    assert summed(of, ".experts.") == 653_908_770_816
    assert summed(of, ".shared_experts.") == 2_554_331_136
    assert summed(of, ".gate.") == 106_445_312
    dense = [f"layers.{i}.ffn.w" for i in range(3)]
    assert summed(of, *dense) == 1_189_085_184


def test_meta_model_keeps_no_memory() -> None:
    with torch.device("meta"):
        model = Transformer(ModelConfig())
    assert all(tensor.is_meta for tensor in model.state_dict().values())
