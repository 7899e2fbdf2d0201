"""Text while its tokens come."""

import pytest

from deepseek_mini.data.tokenizer import byte_tokenizer
from deepseek_mini.inference.text import TextStream

TEXT = "na\u00efve \u4e2d\u6587 \U0001f642 end"


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_characters_come_whole_and_as_soon_as_they_are(size):
    tokenizer = byte_tokenizer()
    ids, stream = tokenizer.encode(TEXT), TextStream(tokenizer)
    shown = ""
    for start in range(0, len(ids), size):
        shown += stream.feed(ids[start : start + size])
        whole = bytes(ids[: start + size]).decode(errors="ignore")
        assert shown == whole
    assert shown + stream.flush() == TEXT


def test_bytes_that_are_no_text_are_not_held_back_for_ever():
    stream = TextStream(byte_tokenizer())
    shown = "".join(stream.feed([0x80]) for _ in range(8))
    assert shown + stream.flush() == "\ufffd" * 8


def test_what_is_left_comes_at_the_end():
    stream = TextStream(byte_tokenizer())
    assert stream.feed([0x61, 0xE4]) == "a"
    assert stream.flush() == "\ufffd"
    assert stream.flush() == ""
