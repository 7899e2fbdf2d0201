import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import models, normalizers, pre_tokenizers

from deepseek_mini.data.tokenizer import (
    EOS,
    Tokenizer,
    byte_tokenizer,
    load_tokenizer,
    train_bpe,
)

TEXTS = [
    f"def item_{i}(self):\n    return self.names[{i * 37}]  # the router's bias, na\u00efve \u6a21\u578b\n"
    * 3
    for i in range(30)
]
BPE = train_bpe(TEXTS, 350)
BYTES = byte_tokenizer()
ODD_TEXTS = [
    "",
    "\x00\r\n\r \t\u00a0\u2003\u200b",
    "e\u0301 \u00e9 \ufb01 \u212b \u1e9e",
    "\U0001f469\u200d\U0001f52c\U0001f3fd \U0010ffff \ufffd \ue000",
    "12345678 \u0661\u0662\u0663\u0664 \u2167",
    f"{EOS}text{EOS}",
    "\u3053\u3093\u306b\u3061\u306f\u4e16\u754c\uff01abc\u4e2d",
]


@given(st.text())
@pytest.mark.parametrize("tokenizer", [BPE, BYTES], ids=["bpe", "byte"])
def test_text_comes_back_exactly(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    lengths = tokenizer.token_bytes()
    assert sum(lengths[token] for token in ids) == len(text.encode())


@pytest.mark.parametrize("tokenizer", [BPE, BYTES], ids=["bpe", "byte"])
@pytest.mark.parametrize("text", ODD_TEXTS)
def test_odd_text_comes_back_exactly(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text
    batch = [ids.tolist() for ids in tokenizer.encode_batch([text, "x"])]
    assert batch == [tokenizer.encode(text), tokenizer.encode("x")]


def test_text_that_spells_a_special_token_stays_text() -> None:
    for tokenizer in (BPE, BYTES):
        assert tokenizer.eos_id not in tokenizer.encode(f"a{EOS}b")


def test_byte_ids_are_the_bytes() -> None:
    text = "a\n\u00e9\u4e2d"
    assert BYTES.encode(text) == list(text.encode())
    assert (BYTES.size, BYTES.eos_id) == (257, 256)
    assert BYTES.token_bytes() == [1] * 256 + [0]


def test_many_texts_become_the_librarys_ids_of_bytes_without_the_library(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    characters = (*range(0x800), *range(0x800, 0xD800, 61), *range(0xE000, 0x110000, 4093), 0x10FFFF)
    texts = ["".join(map(chr, characters)), *ODD_TEXTS, *TEXTS]
    expected = [BYTES.encode(text) for text in texts]
    assert {token for ids in expected for token in ids} == {*range(0xC0), *range(0xC2, 0xF5)}
    monkeypatch.delattr(BYTES, "_core")
    batch = BYTES.encode_batch(texts)
    assert [ids.tolist() for ids in batch] == expected
    assert {ids.dtype for ids in batch} == {np.dtype(np.uint16)}


def test_bpe_fills_the_vocabulary_and_compresses() -> None:
    assert BPE.size == 350
    assert len(BPE.encode(TEXTS[3])) < len(TEXTS[3].encode()) / 2


def test_bpe_stops_where_no_pair_repeats() -> None:
    assert train_bpe(["ab"], 1000).size == 257


def test_bpe_is_the_same_whenever_it_is_trained_and_in_any_order() -> None:
    assert train_bpe(TEXTS, 350).to_json() == BPE.to_json() == train_bpe(TEXTS[::-1], 350).to_json()


def test_words_are_cut_as_by_deepseek() -> None:
    cuts = {
        "1234567": ["123", "456", "7"],
        "self.names_of": ["self", ".names", "_of"],
        "a  b": ["a", "\u0120", "\u0120b"],
        "x == y:\n\n    z": ["x", "\u0120==", "\u0120y", ":\u010a\u010a", "\u0120" * 3, "\u0120z"],
    }
    rules = tokenizers.Tokenizer.from_str(BPE.to_json()).pre_tokenizer
    assert rules is not None
    for text, words in cuts.items():
        assert [word for word, _ in rules.pre_tokenize_str(text)] == words


def test_special_and_unknown_ids_decode_to_nothing() -> None:
    assert BPE.decode([BPE.eos_id, *BPE.encode("ab"), BPE.eos_id, 5000]) == "ab"
    assert BPE.token_bytes()[BPE.eos_id] == 0


def test_a_saved_tokenizer_loads_as_the_same(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    for tokenizer in (BPE, BYTES):
        tokenizer.save(path)
        loaded = load_tokenizer(path)
        assert loaded.identity() == tokenizer.identity()
        assert loaded.eos_id == tokenizer.eos_id
        assert loaded.encode(TEXTS[0] + EOS) == tokenizer.encode(TEXTS[0] + EOS)


def test_padding_truncation_and_other_eos_names_of_a_file_are_dealt_with(tmp_path: Path) -> None:
    core = tokenizers.Tokenizer.from_str(BYTES.to_json().replace(EOS, "<|endoftext|>"))
    core.enable_truncation(4)
    core.enable_padding(length=8)
    core.save(str(tmp_path / "tokenizer.json"))
    loaded = load_tokenizer(tmp_path / "tokenizer.json")
    assert loaded.encode("six ch") == list(b"six ch")
    assert [ids.tolist() for ids in loaded.encode_batch(["a", "six ch"])] == [list(b"a"), list(b"six ch")]
    assert loaded.eos_id == 256


def test_an_end_token_that_the_file_calls_plain_text_never_comes_out_of_text(tmp_path: Path) -> None:
    content = json.loads(BYTES.to_json())
    content["added_tokens"][0] |= {"special": False}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    loaded = load_tokenizer(tmp_path / "tokenizer.json")
    assert loaded.encode(f"a{EOS}") == list(f"a{EOS}".encode())
    assert loaded.token_bytes()[loaded.eos_id] == 0
    assert loaded.decode([*b"ab", loaded.eos_id]) == "ab"


def test_unusable_tokenizer_files_are_named_with_the_fix(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    with pytest.raises(ValueError, match=rf"{path} is not a file; give the path of a tokenizer\.json"):
        load_tokenizer(path)
    own = json.loads(BYTES.to_json())
    charless = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    stripping = {"type": "Strip", "content": "a", "start": 3, "stop": 3}
    mute = tokenizers.Tokenizer(models.WordLevel({"<eos>": 0, "a": 1}, unk_token="[UNK]"))
    normalising = tokenizers.Tokenizer.from_str(BYTES.to_json())
    normalising.normalizer = normalizers.NFC()
    words = tokenizers.Tokenizer(models.WordLevel({"<eos>": 0, "a": 1, "[UNK]": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    for content, message in [
        ("{truncated", "is not a tokenizer.json"),
        (
            json.dumps(own | {"normalizer": charless}),
            "is not a tokenizer.json",
        ),  # at which the library panics
        (json.dumps(own | {"decoder": stripping}), "cannot be used"),  # a panic while decoding
        (mute.to_str(), "cannot be used: .*UNK"),
        (json.dumps(own | {"added_tokens": []}), "no end-of-document token; add one of"),
        (normalising.to_str(), 'set "normalizer" to null'),
        (words.to_str(), "take a byte-level BPE"),
    ]:
        path.write_text(content, encoding="utf-8")
        with pytest.raises(ValueError, match=rf"{path} .*{message}"):
            load_tokenizer(path)
