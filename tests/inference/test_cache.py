"""The cache against the whole text at once: both forms of attention, any pieces, rows of any length."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deepseek_mini.config import Attention, ModelConfig
from deepseek_mini.cost.flops import kv_cache_bytes_per_token
from deepseek_mini.inference import blocks
from deepseek_mini.inference.attend import Form, expanded, folded
from deepseek_mini.inference.blocks import CachedBlocks, visit_experts
from deepseek_mini.inference.cache import Cache
from deepseek_mini.model.attention import SelfAttention, build_attention
from deepseek_mini.model.moe import MoE
from deepseek_mini.model.rope import rotation_table
from deepseek_mini.model.transformer import Transformer
from model.helpers import attention_fields, expert_fields, few, fill, many, model_with, seeds, tiny, tokens

LENGTH = 12


@st.composite
def pieces(draw: st.DrawFn) -> list[list[int]]:
    """Two rows' cuts of LENGTH tokens into the same number of pieces, some of which are empty in a row."""
    n_pieces = draw(st.integers(1, 4))
    cuts = st.lists(st.integers(0, LENGTH), min_size=n_pieces - 1, max_size=n_pieces - 1).map(sorted)
    rows = [[0, *draw(cuts), LENGTH] for _ in range(2)]
    return [[stop - start for start, stop in pairwise(row)] for row in rows]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@many
@given(attention_fields(), st.sampled_from([1, 7, 64]), seeds)
def test_folded_and_expanded_attention_agree(
    dtype: torch.dtype, tolerance: float, fields: dict[str, Any], scale: int, seed: int
) -> None:
    fields |= {"dim": 5 * scale, "kv_lora_rank": fields["kv_lora_rank"] * scale}
    config = tiny(**fields)
    attn = fill(build_attention(config).double(), seed, std=(5 * scale) ** -0.5).to(dtype)
    x_BTD = torch.randn(2, 9, config.dim, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    with torch.no_grad():
        table = rotation_table(config, attn.rope_dim, 9, x_BTD.device)
        kept = torch.cat(attn.compress(x_BTD, *table), dim=-1)
        future = torch.ones(2, 9, 9, dtype=torch.bool).triu(1)
        one, other = (form(attn, attn.query(x_BTD, *table), kept, future) for form in (expanded, folded))
        full = attn(x_BTD, *table)
    largest = one.abs().max().item()
    assert (one - other).abs().max().item() <= tolerance * largest
    assert (attn.wo(one.flatten(2)) - full).abs().max().item() <= tolerance * full.abs().max().item()


def test_in_bfloat16_both_forms_are_within_its_rounding_of_float64() -> None:
    config = ModelConfig(
        dim=128, n_heads=4, q_lora_rank=96, kv_lora_rank=128, qk_nope_head_dim=32, qk_rope_head_dim=16,
        v_head_dim=32,
    )  # fmt: skip
    exact = fill(build_attention(config).double(), 0, std=config.dim**-0.5)
    x_BTD = torch.randn(2, 99, 128, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    future = torch.ones(2, 99, 99, dtype=torch.bool).triu(1)
    table = rotation_table(config, exact.rope_dim, 99, x_BTD.device)

    def output(attn: SelfAttention, form: Form) -> torch.Tensor:
        x = x_BTD.to(attn.wo.weight.dtype)
        kept = torch.cat(attn.compress(x, *table), dim=-1)
        return form(attn, attn.query(x, *table), kept, future).double()

    with torch.no_grad():
        expected = output(exact, expanded)
        halved = exact.to(torch.bfloat16)
        errors = [(output(halved, form) - expected).norm() / expected.norm() for form in (expanded, folded)]
    assert max(errors) < 2**-7


@few
@given(attention_fields(), expert_fields(), pieces(), st.sampled_from([1, 3, 100]), seeds)
def test_a_text_read_in_pieces_has_the_hidden_states_of_the_whole(
    attention: dict[str, Any], experts: dict[str, Any], cuts: list[list[int]], limit: int, seed: int
) -> None:
    """`limit`: up to how many tokens are folded and visit experts one by one, and run at a time if more."""
    config = tiny(**(attention | experts), n_layers=3)
    model = model_with(config, seed)
    tokens_BT = tokens(2, LENGTH, seed=seed)
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        for name in ("FOLDED", "VISITING", "CHUNK"):
            patch.setattr(blocks, name, limit)
        whole_BTD, _ = model.trunk(tokens_BT)
        trunk = CachedBlocks(model.blocks()[: config.n_layers], config, 2, 2 * LENGTH)
        trunk.cache.buffers = [torch.randn_like(buffer) for buffer in trunk.cache.buffers]
        for counts in zip(*cuts, strict=True):
            if max(counts) == 0:
                continue
            starts = list(trunk.cache.lengths)
            padded = torch.zeros(2, max(counts), dtype=torch.int64)
            for row, (start, count) in enumerate(zip(starts, counts, strict=True)):
                padded[row, :count] = tokens_BT[row, start : start + count]
            hidden_BUD = trunk.extend(model.embed(padded), counts)
            for row, (start, count) in enumerate(zip(starts, counts, strict=True)):
                torch.testing.assert_close(
                    hidden_BUD[row, :count], whole_BTD[row, start : start + count], rtol=1e-9, atol=1e-9
                )
        assert trunk.cache.lengths == [LENGTH, LENGTH]


def test_after_rewinding_other_tokens_take_the_place_of_the_forgotten() -> None:
    model = model_with(tiny())
    text, other = tokens(1, 8), tokens(1, 8, seed=1)
    with torch.no_grad():
        trunk = CachedBlocks(model.blocks()[:2], model.config, 1, 8)
        trunk.extend(model.embed(text), [8])
        trunk.cache.rewind([3])
        again_BTD = trunk.extend(model.embed(other[:, 5:]), [3])
        whole_BTD, _ = model.trunk(torch.cat((text[:, :5], other[:, 5:]), dim=1))
    torch.testing.assert_close(again_BTD, whole_BTD[:, 5:], rtol=1e-10, atol=1e-10)


def test_kept_rows_go_on_as_before() -> None:
    model = model_with(tiny())
    text = tokens(3, 8)
    with torch.no_grad():
        trunk = CachedBlocks(model.blocks()[:2], model.config, 3, 8)
        trunk.extend(model.embed(text[:, :5]), [5, 4, 5])
        trunk.cache.keep_rows([2, 0])
        hidden_BTD = trunk.extend(model.embed(text[[2, 0], 5:]), [3, 3])
        whole_BTD, _ = model.trunk(text[[2, 0]])
    torch.testing.assert_close(hidden_BTD, whole_BTD[:, 5:], rtol=1e-10, atol=1e-10)


@few
@given(expert_fields(), st.integers(1, 5), seeds)
def test_experts_visited_one_by_one_give_the_sorted_dispatchs_result(
    fields: dict[str, Any], n_tokens: int, seed: int
) -> None:
    moe = fill(MoE(tiny(**fields)).double(), seed)
    x_ND = torch.randn(n_tokens, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    with torch.no_grad():
        routing = moe.gate(x_ND)
        expected_ND = moe.experts(x_ND, routing.weights_NK, routing.experts_NK)
        torch.testing.assert_close(visit_experts(moe.experts, x_ND, routing), expected_ND)


def test_only_chosen_experts_are_read() -> None:
    moe = fill(MoE(tiny(n_routed_experts=8, n_expert_groups=1)).double(), 0)
    x_ND = torch.randn(1, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        routing = moe.gate(x_ND)
        idle = [e for e in range(8) if e not in routing.experts_NK]
        assert len(idle) == 6
        for stack in (moe.experts.w1, moe.experts.w2, moe.experts.w3):
            stack[idle] = torch.nan
        assert visit_experts(moe.experts, x_ND, routing).isfinite().all()


@pytest.mark.parametrize("kind", list(Attention))
def test_v3s_cache_holds_exactly_the_bytes_per_token_that_describe_tells(kind: Attention) -> None:
    config = ModelConfig(attention=kind)
    with torch.device("meta"):
        layers = [build_attention(config) for _ in range(config.n_layers)]
    cache = Cache(layers, 2, 3, torch.bfloat16, torch.device("cpu"))
    told = kv_cache_bytes_per_token(config)["gqa8" if kind is Attention.gqa else kind]
    assert cache.bytes_per_token == told
    assert cache.nbytes == sum(b.untyped_storage().nbytes() for b in cache.buffers) == 2 * 3 * told
    if kind is Attention.mla:
        assert told == 70_272


def test_decoding_neither_grows_nor_moves_the_cache() -> None:
    model = model_with(tiny())
    trunk = CachedBlocks(model.blocks()[:2], model.config, 1, 8)
    before = [(buffer.data_ptr(), buffer.nbytes) for buffer in trunk.cache.buffers]
    with torch.no_grad():
        for step in range(8):
            trunk.extend(model.embed(tokens(1, 8)[:, step : step + 1]), [1])
    assert [(buffer.data_ptr(), buffer.nbytes) for buffer in trunk.cache.buffers] == before


def test_the_cache_has_the_precision_of_the_products() -> None:
    config = tiny()
    model = Transformer(config)
    with torch.autocast("cpu", torch.bfloat16):
        halved = CachedBlocks(model.blocks(), config, 1, 4)
    whole = CachedBlocks(model.blocks(), config, 1, 4)
    assert whole.cache.bytes_per_token == 2 * halved.cache.bytes_per_token
    assert config.kv_lora_rank + config.qk_rope_head_dim == whole.cache.buffers[0].shape[-1]
