from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from deepseek_mini.config import Attention, ModelConfig
from deepseek_mini.model.attention import build_attention
from deepseek_mini.model.rope import rotation_table
from model.helpers import (
    assert_close,
    assert_gradients_agree,
    attention_fields,
    fill,
    inputs,
    many,
    oracle_parameters,
    seeds,
    tiny,
)
from oracles import autodiff
from oracles.attention import attention

KINDS = list(Attention)


def attend(module: Any, config: ModelConfig, x_BTD: Tensor, documents_BT: Tensor | None = None) -> Tensor:
    table = rotation_table(config, module.rope_dim, x_BTD.shape[1], x_BTD.device)
    return module(x_BTD, *table, documents_BT)


def double(config: ModelConfig, seed: int = 0) -> nn.Module:
    return fill(build_attention(config).double(), seed)


@many
@given(attention_fields(), seeds, st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=3), max_size=2))
def test_attention_agrees_with_oracle_forward_and_backward(
    fields: dict, seed: int, lengths: list[list[int]]
) -> None:
    """Lengths of the documents of each row; no lengths at all: three tokens without a document mask."""
    config = tiny(**fields)
    n_tokens = min((sum(row) for row in lengths), default=3)
    rows = [[d for d, n in enumerate(row) for _ in range(n)][:n_tokens] for row in lengths]
    documents_BT = torch.tensor(rows) if rows else None
    module = double(config, seed)
    x_BTD = inputs(seed + 1, max(len(rows), 1), n_tokens, config.dim)
    weight_BTD = inputs(seed + 2, *x_BTD.shape).detach()
    out_BTD = attend(module, config, x_BTD, documents_BT)
    (out_BTD * weight_BTD).sum().backward()

    parameters, x = oracle_parameters(module), autodiff.lift(x_BTD.tolist())
    out = [attention(parameters, row, config, rows[b] if rows else None) for b, row in enumerate(x)]
    assert_close(out_BTD, out, 1e-6)
    flat = [number for row in out for token in row for number in token]
    autodiff.backward(autodiff.dot(flat, weight_BTD.flatten().tolist()))
    assert_close(x_BTD.grad, autodiff.gradients(x), 1e-5)
    assert_gradients_agree(module, parameters, 1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_attention_is_causal(kind: Attention) -> None:
    config = tiny(attention=kind)
    module, x_BTD = double(config), inputs(1, 1, 6, config.dim).detach()
    changed_BTD = x_BTD.clone()
    changed_BTD[:, 4:] += 1
    before, after = attend(module, config, x_BTD), attend(module, config, changed_BTD)
    torch.testing.assert_close(before[:, :4], after[:, :4], rtol=0, atol=1e-12)
    assert not torch.allclose(before[:, 4:], after[:, 4:])


@pytest.mark.parametrize("kind", KINDS)
def test_a_document_does_not_see_another(kind: Attention) -> None:
    config = tiny(attention=kind)
    module, x_BTD = double(config), inputs(1, 1, 6, config.dim).detach()
    documents_BT = torch.tensor([[0, 0, 0, 1, 1, 1]])
    changed_BTD = x_BTD.clone()
    changed_BTD[:, :3] += 1
    before, after = (attend(module, config, x, documents_BT) for x in (x_BTD, changed_BTD))
    torch.testing.assert_close(before[:, 3:], after[:, 3:], rtol=0, atol=1e-12)
    unmasked = attend(module, config, changed_BTD)
    assert not torch.allclose(before[:, 3:], unmasked[:, 3:])


@pytest.mark.parametrize("kind", KINDS)
def test_a_document_gives_the_same_wherever_it_lies_in_the_row(kind: Attention) -> None:
    config = tiny(attention=kind)
    module, x_BTD = double(config), inputs(1, 1, 6, config.dim).detach()
    packed = attend(module, config, x_BTD, torch.tensor([[0, 0, 0, 1, 1, 1]]))[:, 3:]
    torch.testing.assert_close(packed, attend(module, config, x_BTD[:, 3:]), rtol=1e-6, atol=1e-6)


def test_mla_has_one_rope_key_for_all_heads_and_norms_only_the_latent() -> None:
    config = ModelConfig()
    with torch.device("meta"):
        shapes = {name: tuple(p.shape) for name, p in build_attention(config).named_parameters()}
    assert shapes == {
        "wq_a.weight": (1536, 7168),
        "q_norm.weight": (1536,),
        "wq_b.weight": (128 * 192, 1536),
        "wkv_a.weight": (512 + 64, 7168),
        "kv_norm.weight": (512,),
        "wkv_b.weight": (128 * 256, 512),
        "wo.weight": (7168, 128 * 128),
    }


def test_mla_without_query_rank_projects_directly() -> None:
    names = {name for name, _ in build_attention(tiny(q_lora_rank=0)).named_parameters()}
    assert names == {"wq.weight", "wkv_a.weight", "kv_norm.weight", "wkv_b.weight", "wo.weight"}


def test_absorbed_form_of_mla_equals_the_naive_form() -> None:
    """V2 appendix C: a query of the latent's width, and the latent as the only key and value."""
    config = tiny(n_heads=3)
    module, x_BTD = double(config), inputs(1, 1, 5, config.dim).detach()
    nope, rank = config.qk_nope_head_dim, config.kv_lora_rank
    with torch.no_grad():
        naive_BTD = attend(module, config, x_BTD)
        cos_TP, sin_TP = (t.double() for t in rotation_table(config, 2, 5, x_BTD.device))

        def turn(x: Tensor) -> Tensor:
            a, b = x[..., 0], x[..., 1]
            cos, sin = cos_TP.view(1, 5, *[1] * (x.ndim - 3)), sin_TP.view(1, 5, *[1] * (x.ndim - 3))
            return torch.stack([a * cos - b * sin, a * sin + b * cos], -1)

        q_BTHK = module.wq_b(module.q_norm(module.wq_a(x_BTD))).unflatten(-1, (3, -1))
        compressed_BTC = module.wkv_a(x_BTD)
        latent_BTC = module.kv_norm(compressed_BTC[..., :rank])
        up_HKC = module.wkv_b.weight.unflatten(0, (3, -1))
        absorbed_BTHC = torch.einsum("bthk,hkc->bthc", q_BTHK[..., :nope], up_HKC[:, :nope])
        scores_BHTS = torch.einsum("bthc,bsc->bhts", absorbed_BTHC, latent_BTC)
        scores_BHTS += torch.einsum(
            "bthr,bsr->bhts", turn(q_BTHK[..., nope:]), turn(compressed_BTC[..., rank:])
        )
        past = torch.ones(5, 5).tril().bool()
        weights_BHTS = (scores_BHTS * 5**-0.5).masked_fill(~past, -torch.inf).softmax(-1)
        mixed_BTHC = torch.einsum("bhts,bsc->bthc", weights_BHTS, latent_BTC)
        absorbed_BTD = module.wo(torch.einsum("bthc,hvc->bthv", mixed_BTHC, up_HKC[:, nope:]).flatten(2))
    torch.testing.assert_close(absorbed_BTD, naive_BTD, rtol=1e-6, atol=1e-6)
