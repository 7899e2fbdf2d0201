"""Plain sampling."""

import pytest
import torch

from deepseek_mini.inference.generate import generate
from deepseek_mini.model.transformer import build_model
from small_model import small_model_config

PROMPTS = [[5, 9, 2], [7], [1, 2, 3, 4, 5, 6]]
NO_STOP = -1


@pytest.fixture(scope="module")
def model():
    return build_model(small_model_config(), torch.device("cpu"), 0)


def test_temperature_zero_takes_the_likeliest_token_of_the_whole_text(model):
    (ids,) = generate(model, [PROMPTS[0]], 8, 0.0, seed=0, stop=NO_STOP)
    text = list(PROMPTS[0])
    for token in ids:
        with torch.no_grad():
            assert token == model(torch.tensor([text]))[0, -1].argmax()
        text.append(token)
    assert len(ids) == 8


def test_prompts_of_different_lengths_do_not_disturb_each_other(model):
    together = generate(model, PROMPTS, 6, 0.0, seed=0, stop=NO_STOP)
    alone = [generate(model, [prompt], 6, 0.0, seed=0, stop=NO_STOP)[0] for prompt in PROMPTS]
    assert together == alone


def test_a_seed_repeats_and_another_one_differs(model):
    first, again, other = (generate(model, PROMPTS, 12, 1.0, seed, NO_STOP) for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_sampled_frequencies_follow_the_softmax(model):
    with torch.no_grad():
        expected = (model(torch.tensor([[5, 9, 2]]))[0, -1] / 0.7).softmax(-1)
    drawn = [ids[0] for seed in range(8) for ids in generate(model, [[5, 9, 2]] * 500, 1, 0.7, seed, NO_STOP)]
    observed = torch.bincount(torch.tensor(drawn), minlength=61)
    chi_square = ((observed - 4000 * expected) ** 2 / (4000 * expected)).sum().item()
    assert chi_square < 100  # 60 degrees of freedom: 99.9% lie below


def test_the_stop_token_ends_its_row_only_and_is_not_returned(model):
    plain = generate(model, PROMPTS, 6, 0.0, seed=0, stop=NO_STOP)
    stop = plain[0][2]
    stopped = generate(model, PROMPTS, 6, 0.0, seed=0, stop=stop)
    for ids, full in zip(stopped, plain, strict=True):
        assert ids == (full[: full.index(stop)] if stop in full else full)
    assert len(stopped[0]) <= 2


@pytest.mark.parametrize(("prompt", "message"), [([], "empty"), ([1] * 4096, r"model\.max_seq_len=4096")])
def test_a_prompt_that_cannot_be_continued_is_refused(model, prompt, message):
    with pytest.raises(ValueError, match=message):
        generate(model, [prompt], 1, 0.0, seed=0, stop=NO_STOP)
