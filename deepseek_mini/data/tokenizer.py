"""Byte-level tokenizers: BPE trained on the corpus, plain bytes, or one read from a tokenizer.json.

All three are byte-level BPE: every token stands for a fixed string of bytes, every text can be encoded,
and decoding gives it back exactly. Plain bytes are the BPE without merges.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers

EOS = "<\uff5cend\u2581of\u2581sentence\uff5c>"
"""DeepSeek's end-of-sentence token; here it ends a document."""
EOS_TOKEN = AddedToken(EOS, special=True, normalized=False)
EOS_NAMES = (EOS, "<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "<|im_end|>")
"""What tokenizers call it; the first that a tokenizer has is taken."""

SMALLEST_VOCABULARY = 257

DIGITS = r"\p{N}{1,3}"
KANA_AND_HAN = "[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]+"
WORDS = (
    r"[!-/:-@\[-`{-~][A-Za-z]+"  # a punctuation mark opens the word that follows: .join, _name, (self
    r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"  # a word, with the space before it
    r"| ?[\p{P}\p{S}]+[\r\n]*"  # punctuation, to the end of its line
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"  # line ends; white space up to the last blank, which the word takes
)
WORD_PATTERNS = (DIGITS, KANA_AND_HAN, WORDS)
"""After DeepSeek's tokenizer: merges never cross the borders that these draw, one after the other."""

PROBE = " The  end.\r\n\n\tdef f(x):  # 12345\n" + "".join(map(chr, range(0x800))) + "\u4e2d\ufffd\U0001f642 "
"""Exercises every kind of UTF-8 sequence and what normalisers like to change."""


class Tokenizer:
    """Text to token ids and back."""

    def __init__(self, core: tokenizers.Tokenizer) -> None:
        """Raises ValueError if `core` has no end-of-document token, or loses text."""
        core.no_truncation()
        core.no_padding()
        core.encode_special_tokens = True  # text that merely looks like a special token stays text
        self._core = core
        vocabulary = core.get_vocab(with_added_tokens=True)
        eos = next((name for name in EOS_NAMES if name in vocabulary), None)
        if eos is None:
            raise ValueError(f"it has no end-of-document token; add one of {', '.join(EOS_NAMES)}")
        core.add_special_tokens([AddedToken(eos, special=True, normalized=False)])  # files may call it plain
        self.eos = eos
        self.eos_id: int = vocabulary[eos]
        self.size: int = max(vocabulary.values()) + 1
        """Ids run from 0 to size - 1."""
        self.dtype = np.uint16 if self.size <= 2**16 else np.uint32
        """Of arrays of ids."""
        self._check_exact()

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`; special tokens never come out of text."""
        return self._core.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """As `encode`, for many texts, in parallel: arrays of `dtype`."""
        encodings = self._core.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, self.dtype) for encoding in encodings]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`. Special tokens and ids that the tokenizer lacks give no text."""
        return self._core.decode(list(ids), skip_special_tokens=True)

    def token_bytes(self) -> list[int]:
        """Bytes of UTF-8 text that each id stands for; 0 for special tokens and unused ids."""
        lengths = self._lengths()
        return [lengths.get(index, 0) for index in range(self.size)]

    def identity(self) -> str:
        """Hash of everything that decides how text is encoded."""
        return _fingerprint(self._core)

    def save(self, path: Path) -> None:
        """Write a tokenizer.json, which `load_tokenizer` and Hugging Face's `tokenizers` read."""
        self._core.save(str(path))

    def to_json(self) -> str:
        """The content of that file."""
        return self._core.to_str()

    def _lengths(self) -> dict[int, int]:
        """Bytes of each token that there is; ids may have any gaps."""
        lengths = {
            index: len(token)  # the byte-level alphabet has one character per byte
            for token, index in self._core.get_vocab(with_added_tokens=False).items()
        }
        for index, added in self._core.get_added_tokens_decoder().items():
            lengths[index] = 0 if added.special else len(added.content.encode())
        return lengths

    def _check_exact(self) -> None:
        ids = self.encode(PROBE)
        lengths = self._lengths()
        if self.decode(ids) != PROBE or sum(lengths[token] for token in ids) != len(PROBE.encode()):
            raise ValueError(
                "it does not give text back byte by byte; take a byte-level BPE (as of GPT-2, Llama 3, "
                'DeepSeek), and set "normalizer" to null if the file has one'
            )


class ByteTokenizer(Tokenizer):
    """Ids 0 to 255 are the bytes: whole corpora are encoded without the library, which looks each one up."""

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.frombuffer(text.encode(), np.uint8).astype(self.dtype) for text in texts]


def byte_tokenizer() -> Tokenizer:
    """Ids 0 to 255 are the bytes, 256 ends a document."""
    vocabulary = {character: byte for byte, character in enumerate(_byte_alphabet())}
    core = _byte_level(models.BPE(vocab=vocabulary, merges=[]), patterns=())
    core.add_special_tokens([EOS_TOKEN])
    return ByteTokenizer(core)


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE of at most `vocab_size` ids; fewer if the texts have no more pairs that repeat.

    Id 0 ends a document. The result depends on the texts, not on their order or the number of threads.
    """
    core = _byte_level(models.BPE(), WORD_PATTERNS)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[EOS_TOKEN],
        initial_alphabet=_byte_alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer=trainer)
    return Tokenizer(core)


def bpe_rules() -> str:
    """Hash of the rules by which `train_bpe` cuts text into words."""
    return _fingerprint(_byte_level(models.BPE(), WORD_PATTERNS))


def load_tokenizer(path: Path) -> Tokenizer:
    """Read a tokenizer.json. Raises ValueError, naming the file and the fix, if it cannot be used."""
    if not path.is_file():
        raise ValueError(f"{path} is not a file; give the path of a tokenizer.json")
    with _naming(f"{path} is not a tokenizer.json of Hugging Face's `tokenizers`"):
        core = tokenizers.Tokenizer.from_file(str(path))
    with _naming(f"{path} cannot be used"):
        return Tokenizer(core)


@contextmanager
def _naming(complaint: str) -> Iterator[None]:
    """Any failure as a ValueError: the library raises bare Exception, and its panics are not even that."""
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise ValueError(f"{complaint}: {error}") from error


def _fingerprint(core: tokenizers.Tokenizer) -> str:
    return hashlib.sha256(core.to_str().encode()).hexdigest()[:16]


def _byte_level(model: models.BPE, patterns: Iterable[str]) -> tokenizers.Tokenizer:
    """`model` over the bytes of the words that the patterns, one after the other, cut a text into."""
    core = tokenizers.Tokenizer(model)
    splits = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in patterns]
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.pre_tokenizer = pre_tokenizers.Sequence([*splits, to_bytes])
    core.decoder = decoders.ByteLevel()
    return core


def _byte_alphabet() -> list[str]:
    """The character that stands for each byte: itself if printable, else the next unused code point."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(spare)) for byte in range(256)]
