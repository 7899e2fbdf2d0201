"""Data domains of documents, and specialisation by them against planted and absent preferences."""

import numpy as np
import pytest

from deepseek_mini.analysis.specialisation import MOST_DOMAINS, REST, TOP, domains_of, specialise

NAMES = [f"lib/{folder}/{i}.py" for folder in ("a", "b", "c") for i in range(12)]


def documents(preference: float, own: float, seed: int) -> np.ndarray:
    """Counts of 36 documents over 2 layers and 8 experts: the second layer prefers nothing by domain.

    `own` is the taste that each document has for itself, `preference` that of its domain.
    """
    generator = np.random.default_rng(seed)
    counts = np.zeros((36, 2, 8), dtype=np.int32)
    by_domain = generator.normal(size=(3, 8))
    for d in range(36):
        for layer in range(2):
            logits = own * generator.normal(size=8) + preference * (layer == 0) * by_domain[d // 12]
            counts[d, layer] = generator.multinomial(400, np.exp(logits) / np.exp(logits).sum())
    return counts


def test_what_a_domains_documents_share_is_told_from_what_each_has_for_itself() -> None:
    found = specialise(NAMES, documents(preference=0.5, own=0.3, seed=0))
    assert found is not None
    assert sorted(found.domains) == ["a", "b", "c"]
    assert found.shown_L.tolist() == [True, False]
    assert found.information_L[0] > 3 * found.shuffled_L[0]
    assert found.shuffled_L[1] > 0  # documents' own tastes alone tell something of their folder
    assert found.counts_KLE.sum() == 36 * 2 * 400


def test_without_a_preference_chance_is_exceeded_at_its_rate() -> None:
    shown = []
    for seed in range(40):
        found = specialise(NAMES, documents(preference=0.0, own=0.3, seed=seed))
        assert found is not None
        shown += found.shown_L.tolist()
    assert np.mean(shown) < 0.12


def test_domains_are_the_folders_below_what_all_share() -> None:
    assert domains_of(NAMES, [1] * 36)[::12] == ["a", "b", "c"]
    library = ["asyncio/events.py", "asyncio/locks.py", "json/decoder.py", *(f"{i}.py" for i in range(20))]
    assert domains_of(library, [1] * 23)[:4] == ["asyncio", "asyncio", "json", TOP]
    assert domains_of(["/x/books/one.txt", "/x/books/two.txt"], [1, 1]) == ["one.txt", "two.txt"]


def test_the_smallest_of_many_domains_are_one() -> None:
    found = domains_of([f"{i:02d}/x.py" for i in range(20)], list(range(20)))
    assert len(set(found)) == MOST_DOMAINS
    assert found[:9] == [REST] * 9
    assert found[9:] == [f"{i:02d}" for i in range(9, 20)]


@pytest.mark.parametrize("names", [["a/x", "a/y"], ["a/x", "b/y"], ["one"], [f"{i}" for i in range(30)]])
def test_too_few_domains_or_documents_say_nothing(names: list[str]) -> None:
    assert specialise(names, np.ones((len(names), 1, 4), dtype=np.int32)) is None
