"""Random models in both libraries, run directories of ours, and the comparison of logits."""

import math
import random
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

from deepseek_mini.config import Config, DataConfig, ModelConfig, MtpConfig
from deepseek_mini.interop.load import write_run
from deepseek_mini.model.router import Gate, Routing
from deepseek_mini.model.transformer import Transformer
from model.helpers import fill

MARGIN = 1e-4
"""Tokens are drawn again if a choice of experts or groups is closer than this."""
TOLERANCE = 1e-5
"""Of the largest logit, in float32."""
STD = 0.15
"""Of random weights, and of norm weights around 1."""


def random_config(seed: int) -> ModelConfig:
    """A small model with odd sizes. 24 seeds in a row have every combination of groups, YaRN and query."""
    draw = random.Random(seed)
    n_groups, yarn = (1, 2, 4, 8)[seed % 4], seed // 4 % 3
    n_limited = draw.randint(1, n_groups)
    size = draw.randint(2, 4)
    n_layers = draw.randint(2, 5)
    return ModelConfig(
        vocab_size=draw.randint(50, 130),
        dim=draw.randint(9, 41),
        inter_dim=draw.randint(5, 50),
        moe_inter_dim=draw.randint(3, 21),
        n_layers=n_layers,
        n_dense_layers=draw.randint(0, n_layers - 1),
        n_heads=draw.randint(1, 5),
        n_routed_experts=n_groups * size,
        n_shared_experts=1 + seed // 2 % 2,
        n_activated_experts=draw.randint(1, min(6, n_limited * size)),
        n_expert_groups=n_groups,
        n_limited_groups=n_limited,
        route_scale=draw.choice([1.0, 2.5, 5.0]),
        q_lora_rank=draw.randint(3, 17) if seed // 12 % 2 else 0,
        kv_lora_rank=draw.randint(3, 19),
        qk_nope_head_dim=draw.randint(1, 13),
        qk_rope_head_dim=2 * draw.randint(1, 7),
        v_head_dim=draw.randint(1, 11),
        original_seq_len=(64, 16, 256)[yarn],  # off; on, and beyond the original length; on, and within it
        max_seq_len=(64, 64, 512)[yarn],
        rope_theta=draw.choice([100.0, 10000.0]),
        rope_factor=draw.choice([2.0, 4.0, 40.0]),
        beta_fast=draw.choice([4, 32]),
        mscale=draw.choice([0.707, 1.0]),
        mtp=MtpConfig(depth=seed % 3),
    )


def random_model(config: ModelConfig, seed: int) -> Transformer:
    """Weights and gate biases large enough that every term matters."""
    model = Transformer(config)
    fill(model, seed, std=STD)
    return model.eval()


def save_run(folder: Path, model: Transformer) -> Path:
    """A run directory with this model as its checkpoint."""
    folder.mkdir(parents=True)
    data = DataConfig(tokenizer="byte", sequence_length=16)
    write_run(folder, Config(model=model.config, data=data), dict(model.state_dict()))
    return folder


def random_peer(config: ModelConfig, seed: int) -> DeepseekV3ForCausalLM:
    """A transformers model of the same shape, its weights drawn there."""
    peer = DeepseekV3ForCausalLM(peer_config(config))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*peer.named_parameters(), *peer.named_buffers()]:
            if isinstance(tensor, torch.nn.Parameter) or name.endswith("bias"):
                centre = 1.0 if "norm" in name else 0.0
                tensor.copy_(centre + STD * torch.randn(tensor.shape, generator=generator))
    peer.set_experts_implementation("eager")  # the faster ones need sizes that are multiples of 4
    return peer.eval()


def peer_config(c: ModelConfig) -> DeepseekV3Config:
    """Written out once more, in transformers' own words, so that ours is not checked against itself."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": c.rope_theta}
    if c.max_seq_len > c.original_seq_len:
        rope |= {
            "rope_type": "yarn", "factor": c.rope_factor, "beta_fast": c.beta_fast, "beta_slow": c.beta_slow,
            "original_max_position_embeddings": c.original_seq_len,
            "mscale": c.mscale, "mscale_all_dim": c.mscale,
        }  # fmt: skip
    return DeepseekV3Config(
        vocab_size=c.vocab_size, hidden_size=c.dim, intermediate_size=c.inter_dim,
        moe_intermediate_size=c.moe_inter_dim, num_hidden_layers=c.n_layers, num_attention_heads=c.n_heads,
        num_key_value_heads=c.n_heads, n_shared_experts=c.n_shared_experts,
        n_routed_experts=c.n_routed_experts, routed_scaling_factor=c.route_scale,
        kv_lora_rank=c.kv_lora_rank, q_lora_rank=c.q_lora_rank or None, qk_rope_head_dim=c.qk_rope_head_dim,
        v_head_dim=c.v_head_dim, qk_nope_head_dim=c.qk_nope_head_dim, n_group=c.n_expert_groups,
        topk_group=c.n_limited_groups, num_experts_per_tok=c.n_activated_experts,
        first_k_dense_replace=c.n_dense_layers, max_position_embeddings=c.max_seq_len, rope_parameters=rope,
    )  # fmt: skip


def clear_tokens(model: Transformer, n_tokens: int, seed: int = 0) -> Tensor:
    """Random tokens `[2, n_tokens]` whose routing is clear at every gate of `model`."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(200):
        tokens_BT = torch.randint(model.config.vocab_size, (2, n_tokens), generator=generator)
        if smallest_margin(model, tokens_BT) >= MARGIN:
            return tokens_BT
    raise AssertionError("every draw had a near-tie")


@torch.no_grad()
def smallest_margin(model: Transformer, tokens_BT: Tensor) -> float:
    """By how much the closest choice of a group or an expert was made."""
    margins = [math.inf]
    gates = [module for module in model.modules() if isinstance(module, Gate)]
    hooks = [gate.register_forward_hook(lambda g, _, r: margins.extend(_margins(g, r))) for gate in gates]
    model(tokens_BT)
    for hook in hooks:
        hook.remove()
    return min(margins)


def _margins(gate: Gate, routing: Routing) -> list[float]:
    """Of each token's last choice among groups and among experts over the next best."""
    assert gate.bias is not None
    biased_NGX = (routing.scores_NE + gate.bias).unflatten(1, (gate.n_groups, -1))
    groups_NG = gate.group_score(biased_NGX)
    kept_N1 = groups_NG.sort(1, descending=True).values[:, gate.n_limited_groups - 1, None]
    reachable_NE = biased_NGX.masked_fill((groups_NG < kept_N1)[..., None], -math.inf).flatten(1)
    return _gaps(groups_NG, gate.n_limited_groups) + _gaps(reachable_NE, gate.n_activated)


def _gaps(values_NX: Tensor, n_chosen: int) -> list[float]:
    best_NX = values_NX.sort(1, descending=True).values
    return (best_NX[:, n_chosen - 1] - best_NX[:, n_chosen]).tolist() if n_chosen < best_NX.shape[1] else []


def relative_error(actual_BTV: Tensor, expected_BTV: Tensor) -> float:
    """Largest difference over the largest logit."""
    return ((actual_BTV - expected_BTV).abs().max() / expected_BTV.abs().max()).item()


def files_of(folder: Path, *patterns: str) -> dict[str, bytes]:
    """Content of the files that match, by name."""
    return {p.name: p.read_bytes() for pattern in patterns for p in sorted(folder.glob(pattern))}
