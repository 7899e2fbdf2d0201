"""Bytes of activations that layers keep for the backward pass, in FP8 and in high precision."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from deepseek_mini.compose import load_config
from deepseek_mini.config import Backend, Format, ModelConfig, PrecisionConfig
from deepseek_mini.model.experts import RoutedExperts
from deepseek_mini.model.transformer import build_model
from deepseek_mini.precision.convert import convert
from deepseek_mini.precision.experts import Fp8Experts
from deepseek_mini.precision.linear import AttentionOutput, Fp8Linear
from precision.arithmetics import arithmetic

WIDTH, INNER, EXPERTS, CHOSEN, TOKENS = 256, 128, 8, 4, 256
FACTOR = 4 / 128
"""Bytes of a tile's factor for each of its numbers."""


def per_token(forward: Callable[[int], Tensor], rest: torch.dtype = torch.float32) -> float:
    """Bytes kept for one token more: what does not grow with tokens, as casts of weights, drops out."""

    def kept(tokens: int) -> int:
        storages: dict[int, Tensor] = {}

        def pack(tensor: Tensor) -> Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        autocast = torch.autocast("cpu", torch.bfloat16, enabled=rest is torch.bfloat16)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), autocast:
            assert forward(tokens).detach().isfinite().all()
        return sum(tensor.untyped_storage().nbytes() for tensor in storages.values())

    return (kept(2 * TOKENS) - kept(TOKENS)) / TOKENS


@pytest.mark.parametrize(
    ("kind", "rest", "bytes_per_number"),
    [
        (lambda linear: linear, torch.float32, 4),
        (lambda linear: linear, torch.bfloat16, 2),
        (lambda linear: Fp8Linear(linear, arithmetic("emulated")), torch.bfloat16, 1 + FACTOR),
        (lambda linear: AttentionOutput(linear, arithmetic("emulated")), torch.bfloat16, 1.5 + FACTOR),
    ],
    ids=["fp32", "bf16", "fp8", "after attention"],
)
def test_a_linear_keeps_a_byte_per_input_and_after_attention_a_byte_and_a_half(kind, rest, bytes_per_number):
    linear = kind(nn.Linear(WIDTH, 32, bias=False))
    assert per_token(lambda tokens: linear(torch.ones(tokens, WIDTH)), rest) == bytes_per_number * WIDTH


def test_experts_keep_a_token_once_and_the_inputs_of_swiglu_in_a_byte_each():
    config = ModelConfig(dim=WIDTH, moe_inter_dim=INNER, n_routed_experts=EXPERTS, n_expert_groups=1,
                         n_limited_groups=1, n_activated_experts=CHOSEN)  # fmt: skip
    experts = RoutedExperts(config)
    for stack in (experts.w1, experts.w2, experts.w3):
        nn.init.normal_(stack)

    def forward(experts: RoutedExperts) -> Callable[[int], Tensor]:
        def run(tokens: int) -> Tensor:
            gates = torch.ones(tokens, CHOSEN, requires_grad=True)
            chosen = torch.arange(CHOSEN).expand(tokens, -1)
            return experts(torch.ones(tokens, WIDTH, requires_grad=True), gates, chosen)

        return run

    high = per_token(forward(experts), torch.bfloat16)
    ours = per_token(forward(Fp8Experts(experts, arithmetic("emulated"))), torch.bfloat16)
    places = 8 * CHOSEN
    assert high == CHOSEN * (2 * WIDTH + 2 * 2 * INNER + 2) + places
    assert ours == (1 + FACTOR) * (WIDTH + CHOSEN * 2 * INNER) + 4 * CHOSEN + places
    assert ours < 0.34 * high


@pytest.mark.parametrize(
    ("rest", "format", "share"), [(torch.float32, Format.fp32, 0.7), (torch.bfloat16, Format.bf16, 0.84)]
)
def test_a_whole_model_keeps_less_though_norms_and_attention_stay_as_they_are(rest, format, share):
    config = load_config(["model=tiny", "model.vocab_size=512", "model.n_layers=2"]).model

    def forward(format: Format) -> Callable[[int], Tensor]:
        model = build_model(config, torch.device("cpu"), seed=0)
        backend = Backend.emulated if format is Format.fp8 else Backend.auto
        convert(model, PrecisionConfig(format, backend))

        def run(tokens: int) -> Tensor:
            ids = torch.arange(tokens + 1).view(1, -1) % 512
            return model.losses(ids, torch.zeros_like(ids)).main_sum

        return run

    assert per_token(forward(Format.fp8), rest) < share * per_token(forward(format), rest)
