"""Temperature, top-k and top-p against transformers, and the draw against its probabilities."""

import pytest
import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from deepseek_mini.inference.sampling import Sampling, draw, probabilities, row_generators

LOGITS = torch.randn(40, 97, generator=torch.Generator().manual_seed(0)) * 2


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
@pytest.mark.parametrize("top_k", [None, 1, 7, 97, 200])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.2, 1e-6])
def test_probabilities_are_those_of_transformers(temperature, top_k, top_p):
    probs = probabilities(LOGITS, Sampling(temperature, top_k, top_p))
    scores = TemperatureLogitsWarper(temperature)(None, LOGITS.double())
    if top_k is not None:
        scores = TopKLogitsWarper(top_k)(None, scores)
    if top_p < 1:
        scores = TopPLogitsWarper(top_p)(None, scores)
    torch.testing.assert_close(probs, scores.softmax(-1), rtol=1e-12, atol=1e-15)


def test_temperature_zero_puts_everything_on_the_likeliest_token():
    probs = probabilities(LOGITS, Sampling(0, top_k=3, top_p=0.5))
    assert torch.equal(probs.argmax(-1), LOGITS.argmax(-1))
    assert torch.equal(probs.amax(-1), torch.ones(40, dtype=torch.float64))
    assert torch.equal(probs.sum(-1), torch.ones(40, dtype=torch.float64))


def test_the_smallest_temperature_is_the_likeliest_token():
    assert torch.equal(probabilities(LOGITS, Sampling(5e-324)), probabilities(LOGITS, Sampling(0)))


@pytest.mark.parametrize("temperature", [0, 1.0])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_logits_that_are_not_finite_are_refused(temperature, value):
    logits = LOGITS.clone()
    logits[3, 5] = value
    with pytest.raises(ValueError, match="logits are not finite"):
        probabilities(logits, Sampling(temperature))


def test_drawn_frequencies_follow_the_weights_whatever_their_sum():
    weights = torch.tensor([0.0, 3.0, 1.0, 0.0, 4.0, 0.0], dtype=torch.float64)
    (random,) = row_generators(0, 1)
    counts = torch.bincount(torch.tensor([draw(weights, random) for _ in range(8000)]), minlength=6)
    expected = torch.tensor([0, 3000, 1000, 0, 4000, 0])
    assert torch.equal(counts == 0, expected == 0)
    chi_square = ((counts - expected) ** 2 / expected.clamp(min=1)).sum().item()
    assert chi_square < 13.8  # 2 degrees of freedom: 99.9% lie below


def test_the_ends_of_the_unit_interval_draw_tokens_that_have_a_weight():
    class Fixed:
        def __init__(self, value: float) -> None:
            self.value = value

        def random(self) -> float:
            return self.value

    weights = torch.tensor([0.0, 0.1, 0.2, 0.3, 0.0], dtype=torch.float64)
    assert draw(weights, Fixed(0.0)) == 1
    assert draw(weights, Fixed(1 - 2**-53)) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": -0.1}, "temperature -0.1"),
        ({"temperature": float("nan")}, "temperature nan"),
        ({"top_k": 0}, "top-k 0"),
        ({"top_p": 0.0}, r"top-p 0\.0"),
        ({"top_p": 1.1}, r"top-p 1\.1"),
    ],
)
def test_a_value_out_of_range_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**arguments)
