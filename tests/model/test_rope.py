import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deepseek_mini.config import ModelConfig
from deepseek_mini.model.rope import apply_rope, rope_frequencies, rotation_table, softmax_scale
from model.helpers import assert_close, attention_fields, inputs, many, seeds, tiny
from oracles import autodiff, rope


@many
@given(attention_fields(), st.sampled_from([2, 4, 8, 64]))
def test_frequencies_agree_with_oracle(fields: dict, dim: int) -> None:
    config = tiny(**fields)
    frequencies = rope_frequencies(config, dim)
    assert frequencies.dtype == torch.float32
    expected = torch.tensor(rope.frequencies(config, dim), dtype=torch.float64)
    torch.testing.assert_close(frequencies.double(), expected, rtol=1e-6, atol=0)


@many
@given(attention_fields(), seeds, st.integers(1, 5))
def test_rotation_agrees_with_oracle_forward_and_backward(fields: dict, seed: int, length: int) -> None:
    config = tiny(**fields)
    dim = config.qk_rope_head_dim
    x_BTHR, weight_BTHR = inputs(seed, 2, length, 3, dim), inputs(seed + 1, 2, length, 3, dim).detach()
    turned_BTHR = apply_rope(x_BTHR, *rotation_table(config, dim, length, torch.device("cpu")))
    (turned_BTHR * weight_BTHR).sum().backward()

    x, angles = autodiff.lift(x_BTHR.tolist()), rope.frequencies(config, dim)
    turned = [[[rope.rotate(head, t, angles) for head in row[t]] for t in range(length)] for row in x]
    assert_close(turned_BTHR, turned, 1e-6)
    flat = [number for row in turned for heads in row for head in heads for number in head]
    autodiff.backward(autodiff.dot(flat, weight_BTHR.flatten().tolist()))
    assert_close(x_BTHR.grad, autodiff.gradients(x), 1e-6)


def test_rope_turns_neighbours_not_halves() -> None:
    config = tiny(qk_rope_head_dim=4)
    x_BTHR = torch.zeros(1, 2, 1, 4)
    x_BTHR[..., 0] = 1.0
    turned_BTHR = apply_rope(x_BTHR, *rotation_table(config, 4, 2, torch.device("cpu")))
    expected = torch.tensor([math.cos(1), math.sin(1), 0, 0])
    torch.testing.assert_close(turned_BTHR[0, 1, 0], expected)


def test_rotation_keeps_bf16() -> None:
    table = rotation_table(tiny(), 2, 3, torch.device("cpu"))
    assert apply_rope(torch.ones(1, 3, 1, 2, dtype=torch.bfloat16), *table).dtype == torch.bfloat16


def test_v3_scales_scores_by_the_whole_query_width_and_by_mscale_squared_only_beyond_4096_tokens() -> None:
    assert softmax_scale(ModelConfig(), 192) == pytest.approx(192**-0.5)
    assert softmax_scale(ModelConfig(max_seq_len=4097), 192) == pytest.approx(0.1352338, abs=1e-7)
    v2 = ModelConfig(max_seq_len=163840, mscale=0.707)
    assert softmax_scale(v2, 192) == pytest.approx(192**-0.5 * 1.2608037**2, rel=1e-6)


def test_yarn_changes_frequencies_only_beyond_the_original_length() -> None:
    original, long = rope_frequencies(ModelConfig(), 64), rope_frequencies(ModelConfig(max_seq_len=16384), 64)
    assert torch.equal(original[:11], long[:11])
    torch.testing.assert_close(long[23:], original[23:] / 40)
    assert (long[11:23] < original[11:23]).all()


@pytest.mark.parametrize("rope_theta", [100.0, 10.0])
def test_yarns_ramp_may_end_beyond_the_last_pair_but_not_beyond_the_width(rope_theta: float) -> None:
    """As released: the end is held at dim - 1, an index into the width and not into its dim / 2 pairs."""
    fields = {"rope_theta": rope_theta, "original_seq_len": 4096, "max_seq_len": 8192}
    config, dim = tiny(**fields), 8
    low, high = rope.yarn_range(config, dim)
    assert high == {100.0: 6, 10.0: dim - 1}[rope_theta]
    ramp_P = ((torch.arange(dim // 2) - low) / (high - low)).clamp(0, 1)
    plain_P = rope_theta ** (-torch.arange(0, dim, 2) / dim)
    torch.testing.assert_close(rope_frequencies(config, dim), plain_P * (1 - ramp_P + ramp_P / 40))


@many
@given(attention_fields())
def test_softmax_scale_agrees_with_oracle(fields: dict) -> None:
    config = tiny(**fields)
    width = config.qk_head_dim
    assert softmax_scale(config, width) == pytest.approx(rope.softmax_scale(config, width))
