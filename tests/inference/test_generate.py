"""Generation: many prompts on a cache."""

import pytest
import torch

from deepseek_mini.inference import blocks
from deepseek_mini.inference.generate import Generation, generate
from deepseek_mini.inference.sampling import Sampling
from deepseek_mini.model.transformer import build_model
from small_model import small_model_config

PROMPTS = [[5, 9, 2], [7], [1, 2, 3, 4, 5, 6]]
GREEDY = Sampling(0)


@pytest.fixture(scope="module")
def model():
    return build_model(small_model_config(), torch.device("cpu"), 0)


@pytest.mark.parametrize("chunk", [1, 4, 256])
def test_temperature_zero_takes_the_likeliest_token_of_the_whole_text(model, monkeypatch, chunk):
    monkeypatch.setattr(blocks, "CHUNK", chunk)
    for prompt, ids in zip(PROMPTS, generate(model, PROMPTS, 12, GREEDY), strict=True):
        text = list(prompt)
        for token in ids:
            with torch.no_grad():
                assert token == model(torch.tensor([text]))[0, -1].argmax()
            text.append(token)
        assert len(ids) == 12


def test_prompts_of_different_lengths_do_not_disturb_each_other(model):
    together = generate(model, PROMPTS, 20, GREEDY)
    alone = [generate(model, [prompt], 20, GREEDY)[0] for prompt in PROMPTS]
    assert together == alone


@pytest.mark.parametrize("speculative", [False, True])
def test_what_a_row_draws_does_not_depend_on_its_neighbours(model, speculative):
    sampling = Sampling(1.0, top_k=20, seed=3)
    rows = generate(model, [PROMPTS[0], PROMPTS[1]], 20, sampling, speculative=speculative)
    others = generate(model, [PROMPTS[0], PROMPTS[2], PROMPTS[1]], 20, sampling, speculative=speculative)
    assert rows[0] == others[0]


def test_equal_prompts_of_a_batch_draw_different_texts(model):
    first, second = generate(model, [[5, 9, 2]] * 2, 20, Sampling(1.0))
    assert first != second


def test_a_seed_repeats_and_another_one_differs(model):
    first, again, other = (generate(model, PROMPTS, 12, Sampling(1.0, seed=seed)) for seed in (3, 3, 4))
    assert first == again
    assert first != other


@pytest.mark.parametrize("speculative", [False, True])
def test_a_stop_token_ends_its_row_only_and_is_not_returned(model, speculative):
    plain = generate(model, PROMPTS, 12, GREEDY)
    stop = {plain[0][2], plain[1][7]}

    def until_stop(ids):
        return ids[: next((i for i, token in enumerate(ids) if token in stop), len(ids))]

    stopped = generate(model, PROMPTS, 12, GREEDY, stop, speculative)
    assert stopped == [until_stop(ids) for ids in plain]
    assert len(stopped[0]) <= 2


def test_streaming_gives_each_pass_its_tokens(model):
    passes = list(Generation(model, PROMPTS, 5, GREEDY))
    assert [[len(tokens) for tokens in new] for new in passes] == [[1, 1, 1]] * 5
    streamed = [[token for new in passes for token in new[row]] for row in range(3)]
    assert streamed == generate(model, PROMPTS, 5, GREEDY)


def test_speed_is_that_of_decoding_without_the_prompts(model, monkeypatch):
    seconds = iter(range(100))
    monkeypatch.setattr("time.perf_counter", lambda: float(next(seconds)))
    generation = Generation(model, PROMPTS, 5, GREEDY)
    passes = iter(generation)
    next(passes)
    assert generation.tokens_per_second is None
    for new in passes:
        assert [len(tokens) for tokens in new] == [1, 1, 1]
        assert generation.tokens_per_second == 3.0


@pytest.mark.parametrize("speculative", [False, True])
def test_a_row_ends_at_the_longest_sequence_of_the_model(speculative):
    config = small_model_config()
    config.max_seq_len = config.original_seq_len = 16
    model = build_model(config, torch.device("cpu"), 0)
    rows = generate(model, [[1] * 15, [2] * 4], 30, GREEDY, speculative=speculative)
    assert [len(row) for row in rows] == [1, 12]


@pytest.mark.parametrize(
    ("prompts", "max_new_tokens", "message"),
    [
        ([[]], 1, "the prompt is empty"),
        ([[1], []], 1, "the prompt is empty"),
        ([], 1, "there is no prompt"),
        ([[1] * 4096], 1, r"4096 tokens, .* model\.max_seq_len=4096"),
        ([[1, 61]], 1, "token 61, the model's are 0 to 60"),
        ([[5, -1, 50]], 1, "token -1, the model's are 0 to 60"),
        ([[1]], 0, "max-new-tokens 0"),
    ],
)
def test_what_cannot_be_continued_is_refused(model, prompts, max_new_tokens, message):
    with pytest.raises(ValueError, match=message):
        generate(model, prompts, max_new_tokens, GREEDY)
