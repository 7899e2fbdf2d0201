import hashlib
import random

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from deepseek_mini.data.corpus import Corpus, build_corpus
from deepseek_mini.data.sources import Document, Text

MANY_TEXTS = st.lists(st.text("ab \n\u4e2d", min_size=1, max_size=5), min_size=40, max_size=60)


def corpus(texts: list[str], fraction: float = 0.3, source: str = "text_files") -> Corpus:
    documents = [Document(f"file {i}", text) for i, text in enumerate(texts)]
    return build_corpus(source, Text("test text", documents), fraction, announce=lambda line: None)


def texts_of(documents: list[Document]) -> list[str]:
    return [document.text for document in documents]


def many(n: int = 100) -> list[str]:
    return [f"document {i}" for i in range(n)]


@given(st.integers(2, 60), st.integers(0, 100))
def test_split_is_independent_of_order_and_names_of_files(n: int, seed: int) -> None:
    one, other = corpus(many(n)), corpus(random.Random(seed).sample(many(n), n))
    assert (texts_of(one.train), texts_of(one.validation)) == (
        texts_of(other.train),
        texts_of(other.validation),
    )
    assert one.hash == other.hash


@given(MANY_TEXTS)
def test_each_text_lies_on_exactly_one_side_once(texts: list[str]) -> None:
    unique = {text for text in texts if text.strip()}
    drawn = {text for text in unique if int(hashlib.sha256(text.encode()).hexdigest(), 16) < 0.3 * 2**256}
    assume(len(unique) >= 20 and 0 < len(drawn) < len(unique))
    split = corpus(texts + texts[:10])
    assert sorted(texts_of(split.train) + texts_of(split.validation)) == sorted(unique)
    assert set(texts_of(split.validation)) == drawn


def test_more_text_does_not_move_a_document_to_the_other_side() -> None:
    before, after = corpus(many(100)), corpus(many(200))
    assert set(texts_of(before.validation)) < set(texts_of(after.validation))
    assert set(texts_of(before.train)) < set(texts_of(after.train))


def test_documents_are_in_the_order_of_their_hashes() -> None:
    train = texts_of(corpus(many()).train)
    assert train == sorted(train, key=lambda text: hashlib.sha256(text.encode()).digest())


def test_corpus_hash_tells_text_source_and_split_apart() -> None:
    variants = [
        corpus(many()),
        corpus([*many(), "more"]),
        corpus(many(), source="python"),
        corpus(many(), fraction=0.5),
    ]
    assert len({variant.hash for variant in variants}) == len(variants)


@pytest.mark.parametrize("texts", [["0123456789"], ["abcdefghij" * 2, "0123456789"]])
def test_few_documents_give_their_ends_and_say_so(texts: list[str]) -> None:
    lines: list[str] = []
    documents = [Document(text[:3], text) for text in texts]
    split = build_corpus("text_files", Text("test text", documents), 0.2, lines.append)
    ends = {document.name: document.text for document in split.validation}
    assert {document.name: document.text + ends[document.name] for document in split.train} == {
        text[:3]: text for text in texts
    }
    assert all(len(ends[text[:3]]) == 0.2 * len(text) for text in texts)
    assert lines == [
        f"data: too few documents ({len(texts)}) to hold some out whole; holding out the last 0.2 of each"
    ]


def test_ends_are_held_out_when_no_document_is_drawn() -> None:
    split = corpus([f"{i} " * 200 for i in range(100, 130)], fraction=0.005)
    assert len(split.train) == len(split.validation) == 30


@pytest.mark.parametrize(
    ("texts", "fraction", "side"),
    [(many(), 0.0, "held-out"), (many(), 1.0, "training")],
)
def test_a_side_without_text_is_refused(texts: list[str], fraction: float, side: str) -> None:
    with pytest.raises(
        ValueError, match=rf"leave no {side} text at data\.validation_fraction={fraction}; .*data\.path"
    ):
        corpus(texts, fraction)


@pytest.mark.parametrize("texts", [[], [" \n"]])
def test_where_there_is_no_text_the_split_is_not_blamed(texts: list[str]) -> None:
    with pytest.raises(ValueError, match=r"there is no text in it; give some \(data\.path\)$"):
        corpus(texts, 0.1)
