import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deepseek_mini.data.packing import Split

EOS = 0
STREAMS = st.lists(st.integers(0, 5), min_size=4, max_size=80)


def split(stream: list[int] | range, length: int, seed: int | None = 0) -> Split:
    return Split(np.array(stream, dtype=np.uint16), EOS, length, seed)


def rows(data: Split, start: int, size: int) -> list[list[int]]:
    return data.batch(start, size).tokens_BS.tolist()


@given(STREAMS, st.integers(1, 3), st.integers(0, 20), st.integers(1, 9))
def test_sequences_know_the_documents_of_the_stream_they_begin_in(
    stream: list[int], length: int, start: int, size: int
) -> None:
    """With a token's number as its place in the stream, the ends of documents before it can be counted."""
    numbered, data = split(range(len(stream)), length), split(stream, length)
    places = [row[0] for row in rows(numbered, start, size)]
    assert data.first_documents(start, size).tolist() == [stream[:place].count(EOS) for place in places]


@given(
    STREAMS,
    st.integers(1, 3),
    st.integers(0, 2**40),
    st.integers(0, 100),
    st.integers(1, 9),
    st.integers(1, 9),
)
def test_a_sample_is_a_pure_function_of_stream_seed_and_index(
    stream: list[int], length: int, seed: int, start: int, first: int, second: int
) -> None:
    whole = split(stream, length, seed).batch(start, first + second)
    resumed = split(stream, length, seed).batch(start + first, second)
    assert torch.equal(whole.tokens_BS[first:], resumed.tokens_BS)
    assert torch.equal(whole.documents_BS[first:], resumed.documents_BS)


@given(st.integers(5, 90), st.integers(1, 4), st.integers(0, 3), st.sampled_from([None, 0, 7]))
def test_every_token_is_predicted_exactly_once_per_epoch(
    n: int, length: int, epoch: int, seed: int | None
) -> None:
    data = split(range(1, n + 1), length, seed)
    batch = data.batch(epoch * data.n_sequences, data.n_sequences)
    inputs_BT, labels_BT = batch.tokens_BS[:, :-1], batch.tokens_BS[:, 1:]
    assert torch.equal(labels_BT, inputs_BT + 1)
    predicted = sorted(labels_BT.flatten().tolist())
    assert predicted == list(range(2, 2 + len(predicted)))
    assert n - 1 - len(predicted) < length


@given(STREAMS, st.integers(1, 3))
def test_a_document_owns_its_end_token(stream: list[int], length: int) -> None:
    batch = split(stream, length).batch(0, 4)
    for tokens, documents in zip(batch.tokens_BS.tolist(), batch.documents_BS.tolist(), strict=True):
        expected, document = [], 0
        for token in tokens:
            expected.append(document)
            document += token == EOS
        assert documents == expected


def test_batches_are_int64_and_one_token_longer_than_the_sequence() -> None:
    batch = split(range(100), 7).batch(3, 5)
    assert batch.tokens_BS.shape == batch.documents_BS.shape == (5, 8)
    assert batch.tokens_BS.dtype == batch.documents_BS.dtype == torch.int64


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    data, other = split(range(101), 1, seed=1), split(range(101), 1, seed=2)
    orders = [rows(data, 0, 100), rows(data, 100, 100), rows(other, 0, 100), rows(other, 100, 100)]
    assert len({str(order) for order in orders}) == 4


def test_shuffle_is_the_same_on_every_machine() -> None:
    first_epoch, second_epoch = [0, 4, 9, 7, 1, 5, 6, 3, 8, 2], [0, 6, 2, 1, 3, 7, 4, 9, 8, 5]
    assert [row[0] for row in rows(split(range(11), 1, seed=3), 0, 20)] == first_epoch + second_epoch


def test_validation_order_is_the_same_in_every_epoch() -> None:
    data = split(range(60), 2, seed=None)
    assert rows(data, 0, data.n_sequences) == rows(data, data.n_sequences, data.n_sequences)


@pytest.mark.parametrize("n", [58, 223, 1000])
@pytest.mark.parametrize("part", [4, 16, 32])
def test_the_first_validation_sequences_are_spread_over_the_stream(n: int, part: int) -> None:
    starts = sorted(row[0] for row in rows(split(range(n + 1), 1, seed=None), 0, part))
    gaps = np.diff([0, *starts, n])
    assert gaps.max() <= 2 * n / part + 1
