"""Documents to a stream: the same by the byte tokenizer's short way and by the library's."""

from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers import models

from deepseek_mini.data.sources import Document
from deepseek_mini.data.streams import token_stream
from deepseek_mini.data.tokenizer import EOS, Tokenizer, byte_tokenizer, load_tokenizer

TEXTS = ("one\n", f"Stra\u00dfe {EOS} \u6a21\u578b", "", "\U0001f469\u200d\U0001f52c\r\n" * 9)
DOCUMENTS = [Document(str(i), text) for i, text in enumerate(TEXTS)]


@pytest.mark.parametrize("piece", [5, 2**18])
def test_a_stream_of_bytes_is_the_librarys_and_its_cache_name_too(
    piece: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deepseek_mini.data.streams.PIECE_CHARACTERS", piece)
    monkeypatch.setattr("deepseek_mini.data.streams.GROUP_PIECES", 2)
    ours = byte_tokenizer()
    ours.save(tmp_path / "tokenizer.json")
    library = load_tokenizer(tmp_path / "tokenizer.json")
    assert type(library) is Tokenizer
    assert ours.identity() == library.identity()
    stream_N = token_stream(DOCUMENTS, ours)
    assert np.array_equal(stream_N, token_stream(DOCUMENTS, library))
    assert stream_N.dtype == np.uint16
    assert stream_N.tolist() == [token for text in TEXTS if text for token in [*text.encode(), 256]]


def test_ids_beyond_16_bits_are_kept() -> None:
    core = tokenizers.Tokenizer.from_str(byte_tokenizer().to_json())
    vocabulary = {token: 70_000 + index for token, index in core.get_vocab().items()}
    core.model = models.BPE(vocabulary, merges=[])
    stream_N = token_stream([Document("a", "ab")], Tokenizer(core))
    assert stream_N.tolist() == [70_000 + 97, 70_000 + 98, 256]
    assert stream_N.dtype == np.uint32
