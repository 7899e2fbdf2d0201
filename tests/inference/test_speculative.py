"""Speculative decoding: the same greedy text, the same distribution, and caches that equal no caches."""

from itertools import product

import pytest
import torch
from torch import Tensor

from deepseek_mini.inference import speculative
from deepseek_mini.inference.generate import Generation, generate
from deepseek_mini.inference.sampling import Sampling, draw, probabilities
from deepseek_mini.inference.speculative import SpeculativeDecoder
from deepseek_mini.model.transformer import Transformer
from model.helpers import model_with, tiny_mtp

PROMPTS = [[1, 2, 0, 3], [2, 1, 1], [3, 0, 2, 2, 1, 0, 1]]
FEW_TOKENS = {"vocab_size": 4, "max_seq_len": 128, "original_seq_len": 128}
"""With so small a vocabulary even untrained drafts are often right."""


def few_token_model(depth: int, seed: int = 0) -> Transformer:
    return model_with(tiny_mtp(depth, **FEW_TOKENS), seed)


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("prompts", [PROMPTS[:1], PROMPTS, [[1], [2, 3]]], ids=["one", "three", "short"])
def test_greedy_text_is_that_of_plain_greedy_decoding(depth: int, prompts: list[list[int]]) -> None:
    rates = []
    for seed in range(3):
        model = few_token_model(depth, seed)
        plain = generate(model, prompts, 50, Sampling(0))
        generation = Generation(model, prompts, 50, Sampling(0), speculative=True)
        passes = list(generation)
        assert [[t for new in passes for t in new[row]] for row in range(len(prompts))] == plain
        rates.append(generation.acceptance_rate)
    assert 0 < sum(rates) < len(rates)


def uncached_distributions(model: Transformer, text: list[int], drafts: list[int]) -> Tensor:
    """What each depth expects behind a text and the drafts of the depths before it, from the whole text."""
    rows = []
    for depth in range(1, len(drafts) + 1):
        tokens_BS = torch.tensor([[*text, *drafts[: depth - 1], 0]])
        predictions, _ = model.predict(tokens_BS, torch.zeros_like(tokens_BS))
        rows.append(model.head(predictions[depth].hidden_BUD[0, len(text) - 2]))
    return torch.stack(rows).softmax(-1)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_cached_mtp_equals_uncached_mtp_in_every_pass(depth: int) -> None:
    model = few_token_model(depth)
    texts = [list(prompt) for prompt in PROMPTS]
    with torch.no_grad():
        decoder = SpeculativeDecoder(model, len(texts), 60, Sampling(1.0))
        new = decoder.start(texts)
        for turn in range(12):
            texts = [text + tokens for text, tokens in zip(texts, new, strict=True)]
            for text, drafts, q_KV in zip(texts, decoder.drafts, decoder.q_BKV, strict=True):
                torch.testing.assert_close(
                    q_KV, uncached_distributions(model, text, drafts), rtol=1e-9, atol=1e-12
                )
            if turn == 6:
                decoder.keep_rows([2, 0])
                texts = [texts[2], texts[0]]
            new = decoder.advance()
    assert 0 < decoder.accepted < decoder.drafted


N_DRAWN, N_TOKENS, PROMPT = 6000, 3, [1, 2]
CHI_SQUARE_LIMIT = 103.4
"""99.9% of chi-square values with 63 degrees of freedom lie below."""


def text_probabilities(model: Transformer, sampling: Sampling) -> dict[tuple[int, ...], float]:
    """The probability of every text of N_TOKENS tokens, from the model without cache or drafts."""
    texts = list(product(range(4), repeat=N_TOKENS))
    with torch.no_grad():
        logits = model(torch.tensor([[*PROMPT, *text] for text in texts]))
    probs = probabilities(logits[:, len(PROMPT) - 1 : -1], sampling)
    chosen = probs.gather(2, torch.tensor(texts)[..., None])
    return dict(zip(texts, chosen.prod(1).flatten().tolist(), strict=True))


def chi_square(model: Transformer, sampling: Sampling, speculative: bool) -> float:
    expected = text_probabilities(model, sampling)
    rows = generate(model, [PROMPT] * N_DRAWN, N_TOKENS, sampling, speculative=speculative)
    observed = dict.fromkeys(expected, 0)
    for row in rows:
        observed[tuple(row)] += 1
    assert all(observed[text] == 0 for text, p in expected.items() if p == 0)
    terms = ((observed[text] - N_DRAWN * p) ** 2 / (N_DRAWN * p) for text, p in expected.items() if p > 0)
    return sum(terms)


SETTINGS = [Sampling(1.5), Sampling(2.0, top_k=3), Sampling(2.0, top_p=0.8)]


@pytest.mark.parametrize("sampling", SETTINGS, ids=["temperature", "top-k", "top-p"])
@pytest.mark.parametrize("depth", [0, 1, 2], ids=["plain", "depth 1", "depth 2"])
def test_drawn_texts_have_the_models_own_distribution(sampling: Sampling, depth: int) -> None:
    model = few_token_model(2)
    model.mtp = model.mtp[:depth]
    assert chi_square(model, sampling, speculative=depth > 0) < CHI_SQUARE_LIMIT


def replaces_from_p(drafts, q_KV, p_XV, random):
    """Broken: a rejected draft is replaced by a token from p, not from what q lacks of p."""
    for place, draft in enumerate(drafts):
        if random.random() * q_KV[place, draft] >= p_XV[place, draft]:
            return [*drafts[:place], draw(p_XV[place], random)]
    return [*drafts, draw(p_XV[-1], random)]


def keeps_everything(drafts, q_KV, p_XV, random):
    """Broken: no draft is ever rejected."""
    return [*drafts, draw(p_XV[-1], random)]


def ignores_q(drafts, q_KV, p_XV, random):
    """Broken: a draft stays with the probability p, as if it had not been drawn from q."""
    for place, draft in enumerate(drafts):
        if random.random() >= p_XV[place, draft]:
            return [*drafts[:place], draw((p_XV[place] - q_KV[place]).clamp(min=0), random)]
    return [*drafts, draw(p_XV[-1], random)]


@pytest.mark.parametrize("broken", [replaces_from_p, keeps_everything, ignores_q])
def test_the_same_test_finds_a_broken_acceptance_rule(broken, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speculative, "accept", broken)
    assert chi_square(few_token_model(1), SETTINGS[0], speculative=True) > 2 * CHI_SQUARE_LIMIT


def test_a_model_without_mtp_is_refused_with_the_way_out() -> None:
    with pytest.raises(ValueError, match=r"model\.mtp\.depth=0.*model\.mtp\.depth=1"):
        generate(few_token_model(0), PROMPTS, 5, Sampling(0), speculative=True)


def test_acceptance_rate_counts_kept_drafts(monkeypatch: pytest.MonkeyPatch) -> None:
    model = few_token_model(1)
    monkeypatch.setattr(speculative, "accept", keeps_everything)
    generation = Generation(model, PROMPTS[:1], 21, Sampling(1.0), speculative=True)
    assert generation.acceptance_rate is None
    assert [len(tokens) for (tokens,) in generation] == [1, *[2] * 10]
    assert generation.acceptance_rate == 1.0
    plain = Generation(model, PROMPTS[:1], 5, Sampling(1.0))
    assert list(plain)
    assert plain.acceptance_rate is None
