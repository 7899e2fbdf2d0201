from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from deepseek_mini.config import DataConfig, Source
from deepseek_mini.data import Data, build_data, load_tokenizer
from deepseek_mini.data.tokenizer import byte_tokenizer

Write = Callable[..., DataConfig]
CONFIGS = Path(__file__).parents[2] / "configs/data"


def build(config: DataConfig, vocab_size: int = 320, seed: int = 0) -> tuple[Data, list[str]]:
    lines: list[str] = []
    return build_data(config, vocab_size, seed, lines.append), lines


def texts(data: Data, stream_N: np.ndarray) -> list[str]:
    """The documents of a stream, each of which must end with EOS."""
    ends = np.flatnonzero(stream_N == data.tokenizer.eos_id)
    assert ends[-1] == len(stream_N) - 1
    return [data.tokenizer.decode(ids.tolist()) for ids in np.split(stream_N, ends[:-1] + 1)]


@pytest.mark.parametrize("tokenizer", ["bpe", "byte"])
def test_the_streams_hold_every_document_once_and_share_none(tokenizer: str, write_corpus: Write) -> None:
    config = write_corpus(tokenizer=tokenizer)
    data, _ = build(config)
    train, validation = texts(data, data.train.stream_N), texts(data, data.validation.stream_N)
    files = [path.read_text(encoding="utf-8") for path in Path(str(config.path)).parent.iterdir()]
    assert sorted(train + validation) == sorted(files)
    assert not set(train) & set(validation)
    assert len(validation) > 5


def test_token_bytes_sum_to_the_bytes_of_the_documents(write_corpus: Write) -> None:
    data, _ = build(write_corpus(tokenizer="bpe"), vocab_size=500)
    assert data.token_bytes_V.shape == (500,)
    ids = torch.from_numpy(data.validation.stream_N.astype(np.int64))
    held_out = "".join(texts(data, data.validation.stream_N))
    assert int(data.token_bytes_V[ids].sum()) == len(held_out.encode())
    assert data.token_bytes_V[data.tokenizer.eos_id] == 0


def test_a_second_start_makes_nothing_and_gives_the_same(write_corpus: Write) -> None:
    config = write_corpus(tokenizer="bpe")
    first, lines = build(config)
    assert [line.split(" on ")[0].split(" 0")[0] for line in lines] == [
        "data: training the tokenizer",
        "data: tokenising",
        "data: tokenising",
    ]
    second, lines = build(config)
    assert lines == []
    assert torch.equal(first.train.batch(5, 40).tokens_BS, second.train.batch(5, 40).tokens_BS)
    assert (first.corpus_hash, first.description) == (second.corpus_hash, second.description)
    assert isinstance(second.train.stream_N, np.memmap)


def test_each_tokenizer_has_streams_of_its_own_in_the_cache(write_corpus: Write) -> None:
    lengths = []
    for tokenizer, vocab_size in (("byte", 320), ("bpe", 280), ("bpe", 320)):
        config = write_corpus(tokenizer=tokenizer)
        data, _ = build(config, vocab_size)
        both = texts(data, data.train.stream_N) + texts(data, data.validation.stream_N)
        files = [path.read_text(encoding="utf-8") for path in Path(str(config.path)).parent.iterdir()]
        assert sorted(both) == sorted(files)
        lengths.append(data.train.n_tokens)
    assert lengths == sorted(set(lengths), reverse=True)


def test_every_damaged_cache_file_is_announced_and_made_again(write_corpus: Write) -> None:
    config = write_corpus(tokenizer="bpe")
    tokens = build(config)[0].train.stream_N.tolist()
    files = [path for path in Path(str(config.cache_dir)).iterdir() if path.suffix != ".sha256"]
    assert len(files) == 3
    for path in files:
        path.write_bytes(path.read_bytes()[:-9])
    second, lines = build(config)
    assert sum("is damaged; making it again" in line for line in lines) == 3
    assert second.train.stream_N.tolist() == tokens


def test_changed_text_is_never_served_from_the_cache(write_corpus: Write) -> None:
    config = write_corpus()
    before, _ = build(config)
    file = Path(str(config.path)).parent / "0.txt"
    file.write_text(file.read_text(encoding="utf-8").replace("0:", "1:"), encoding="utf-8")
    after, lines = build(config)
    assert before.corpus_hash != after.corpus_hash
    assert len(lines) == 2
    both = texts(after, after.train.stream_N) + texts(after, after.validation.stream_N)
    assert not any(text.startswith("0:") for text in both)


def test_the_tokenizer_learns_from_training_text_alone(write_corpus: Write) -> None:
    config = write_corpus(tokenizer="bpe")
    data, _ = build(config)
    held_out = texts(data, data.validation.stream_N)[0]
    file = Path(str(config.path)).parent / f"{held_out.split(':')[0]}.txt"
    word = "zzyzxqqj"
    trial = 0
    while True:  # draws again until the changed text is held out as well
        file.write_text(f"{trial} {word * 50} {word} {word}", encoding="utf-8")
        data, _ = build(config)
        if any(word in text for text in texts(data, data.validation.stream_N)):
            break
        trial += 1
    assert len(data.tokenizer.encode(word)) == len(word)


def test_long_documents_are_tokenised_in_pieces_without_loss(
    write_corpus: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deepseek_mini.data.streams.PIECE_CHARACTERS", 50)
    monkeypatch.setattr("deepseek_mini.data.streams.GROUP_PIECES", 3)
    config = write_corpus(tokenizer="bpe")
    data, _ = build(config)
    both = texts(data, data.train.stream_N) + texts(data, data.validation.stream_N)
    assert sorted(both) == sorted(
        path.read_text(encoding="utf-8") for path in Path(str(config.path)).parent.iterdir()
    )


def test_a_tokenizer_file_is_used_as_it_is(write_corpus: Write, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    byte_tokenizer().save(path)
    data, _ = build(write_corpus(tokenizer=str(path)), vocab_size=257)
    assert data.tokenizer.identity() == load_tokenizer(path).identity()


def test_prompts_are_words_of_held_out_documents(write_corpus: Write) -> None:
    data, _ = build(write_corpus())
    held_out = [" ".join(text.split()) for text in texts(data, data.validation.stream_N)]
    assert len(set(data.prompts)) == 3
    assert all(any(text.startswith(prompt) for text in held_out) for prompt in data.prompts)


def test_a_single_document_gives_three_prompts(write_corpus: Write) -> None:
    data, _ = build(write_corpus(n=1, words=400))
    held_out = " ".join(texts(data, data.validation.stream_N)[0].split())
    assert len(set(data.prompts)) == 3
    assert all(prompt and prompt in held_out for prompt in data.prompts)


def test_description_counts_what_is_there(write_corpus: Write) -> None:
    data, _ = build(write_corpus())
    for part in (f"{data.train.n_tokens:,} tokens", f"{data.validation.n_tokens:,} tokens", data.corpus_hash):
        assert part in data.description
    assert "\n" not in data.description


@pytest.mark.parametrize(
    ("settings", "vocab_size", "message"),
    [
        ({"tokenizer": "bpe"}, 256, r"model\.vocab_size=256 is too small.*model\.vocab_size>=257"),
        ({"tokenizer": "byte"}, 256, r"model\.vocab_size=256 is too small.*model\.vocab_size>=257"),
        ({"tokenizer": "bpee"}, 320, r"data\.tokenizer=bpee is neither bpe, byte nor .*give the path"),
        ({"sequence_length": 20000}, 320, r"training text has .*data\.sequence_length=20000.*data\.path"),
        ({"sequence_length": 4500}, 320, r"held-out text has .*raise data\.validation_fraction"),
    ],
)
def test_bad_settings_are_named_with_the_fix(
    settings: dict[str, object], vocab_size: int, message: str, write_corpus: Write
) -> None:
    with pytest.raises(ValueError, match=message):
        build(write_corpus(**settings), vocab_size)


def test_text_that_is_too_short_is_refused_before_a_tokenizer_is_trained(write_corpus: Write) -> None:
    lines: list[str] = []
    with pytest.raises(ValueError, match=r"training text has at most \d{3} tokens"):
        build_data(write_corpus(n=3, tokenizer="bpe", sequence_length=20000), 320, 0, lines.append)
    assert not any("training the tokenizer" in line for line in lines)


def test_a_tokenizer_larger_than_the_model_is_refused(write_corpus: Write, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    byte_tokenizer().save(path)
    message = r"data\.tokenizer=.* has 257 ids, more than model\.vocab_size=256; set model\.vocab_size=257"
    with pytest.raises(ValueError, match=message):
        build(write_corpus(tokenizer=str(path)), vocab_size=256)


@pytest.mark.parametrize("source", list(Source))
def test_each_source_has_a_config_that_says_what_it_is_for(source: Source) -> None:
    path = CONFIGS / f"{source}.yaml"
    assert path.read_text().startswith("# ")
    assert DataConfig(**yaml.safe_load(path.read_text())).source == source
