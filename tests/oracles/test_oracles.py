"""The oracles themselves, against finite differences and numbers that DeepSeek published."""

import math
import random
from types import SimpleNamespace

import pytest

from oracles import autodiff, layers, rope, router

V3 = SimpleNamespace(
    original_seq_len=4096, max_seq_len=16384, rope_theta=10000.0, rope_factor=40.0, beta_fast=32, beta_slow=1,
    mscale=1.0,
)  # fmt: skip


def test_autodiff_agrees_with_finite_differences() -> None:
    draw = random.Random(0)
    weights = [[draw.uniform(-1, 1) for _ in range(3)] for _ in range(4)]
    norm, x = [draw.uniform(0.5, 1.5) for _ in range(3)], [draw.uniform(-1, 1) for _ in range(3)]

    def loss(weights: list, norm: list, x: list) -> autodiff.Number:
        hidden = layers.linear(weights, layers.rms_norm(norm, x))
        return layers.cross_entropy([layers.sigmoid(h) / (2 - h) for h in hidden], 2)

    lifted = autodiff.lift([weights, norm, x])
    autodiff.backward(loss(*lifted))
    for numbers, grads in zip([*weights, norm, x], [*lifted[0], *lifted[1:]], strict=True):
        for i, grad in enumerate(autodiff.gradients(grads)):
            middle, step = numbers[i], 1e-6
            numbers[i] = middle + step
            above = loss(weights, norm, x)
            numbers[i] = middle - step
            below = loss(weights, norm, x)
            numbers[i] = middle
            assert grad == pytest.approx((above - below) / (2 * step), rel=1e-6, abs=1e-9)


def test_yarn_of_v3_runs_from_frequency_10_to_23() -> None:
    assert rope.yarn_range(V3, 64) == (10, 23)
    assert rope.frequencies(V3, 64)[10] == pytest.approx(10000 ** (-20 / 64))
    assert rope.frequencies(V3, 64)[23] == pytest.approx(10000 ** (-46 / 64) / 40)


def test_softmax_scale_of_v3_beyond_4096_tokens() -> None:
    assert rope.mscale(V3) == pytest.approx(1.3688879, abs=1e-7)
    assert rope.softmax_scale(V3, 192) == pytest.approx(0.1352338, abs=1e-7)


def test_perfect_balance_has_sequence_loss_one() -> None:
    scores = [[0.9, 0.1, 0.1, 0.1], [0.1, 0.9, 0.1, 0.1], [0.1, 0.1, 0.9, 0.1], [0.1, 0.1, 0.1, 0.9]]
    assert router.sequence_balance_loss(scores, 1) == pytest.approx(1.0)


def test_softmax_does_not_overflow() -> None:
    assert layers.softmax([1000.0, 1000.0]) == [0.5, 0.5]
    assert math.isfinite(autodiff.plain(layers.cross_entropy([800.0, 0.0], 0)))
