"""Text to batches: how fast, beside the tokenizer library alone and beside the most that training can take.

Training takes at most what the device's whole matmul peak would train on. The first start makes the tokenizer
and the token files, in an empty cache; later starts read and hash the text and map the files into memory.
"""

import importlib.metadata
import tempfile
from collections.abc import Callable
from dataclasses import replace
from itertools import count

import numpy as np
import tokenizers
import torch

from benchmarks.result import Result, compared
from benchmarks.timing import medians, seconds_of
from deepseek_mini.config import Config
from deepseek_mini.cost.flops import flops_per_token
from deepseek_mini.cost.hardware import choose_device, choose_precision, matmul_peak, product_dtype
from deepseek_mini.data import Data, build_data
from deepseek_mini.data.corpus import build_corpus
from deepseek_mini.data.sources import Document, read_text
from deepseek_mini.data.streams import token_stream

SAMPLE_BYTES = 10_000_000
"""Of text that is tokenised in a round."""
BATCHES = 50
"""Made in a round."""
CPU = torch.device("cpu")
TRAINING = "training at the device's whole matmul peak"


def data(config: Config, rounds: int, say: Callable[[str], None]) -> list[Result]:
    """MB/s of tokenising, tokens/s of batches, seconds of a start."""
    with tempfile.TemporaryDirectory() as folder:
        settings = replace(config.data, cache_dir=folder)

        def start() -> Data:
            return build_data(settings, config.model.vocab_size, config.seed, say)

        first = seconds_of(start, CPU)
        later = medians("data: start", {"start": start}, rounds, CPU, say)["start"]
        built = start()
        if not isinstance(built.train.stream_N, np.memmap):
            raise RuntimeError("the tokens are not mapped into memory")
        starts = compared(
            "data_second_start", later, first, "the first start", "seconds", more_is_better=False
        )
        return [*tokenising(config, built, rounds, say), batches(config, built, rounds, say), starts]


def tokenising(config: Config, built: Data, rounds: int, say: Callable[[str], None]) -> list[Result]:
    """Documents to a packed stream, in UTF-8 megabytes per second."""
    documents = sample(config, say)
    texts = [document.text for document in documents]
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    plain = tokenizers.Tokenizer.from_str(built.tokenizer.to_json())
    works = {
        "ours": lambda: token_stream(documents, built.tokenizer),
        "plain": lambda: plain.encode_batch_fast(texts, add_special_tokens=False),
    }
    seconds = medians("data: tokenising", works, rounds, CPU, say)
    library = f"tokenizers {importlib.metadata.version('tokenizers')} encode_batch_fast, no arrays made"
    rate, ceiling = megabytes / seconds["ours"], megabytes / seconds["plain"]
    unit = f"MB/s, {megabytes:.1f} MB in {len(documents)} documents"
    bytes_per_token = megabytes * 1e6 / len(token_stream(documents, built.tokenizer))
    most = most_tokens_per_second(config)
    taken = None if most is None else most * bytes_per_token / 1e6
    return [
        compared("data_tokenising", rate, ceiling, library, unit, more_is_better=True),
        compared("data_tokenising", rate, taken, TRAINING, unit, more_is_better=True),
    ]


def batches(config: Config, built: Data, rounds: int, say: Callable[[str], None]) -> Result:
    """Batches out of the mapped tokens, in tokens per second."""
    size, numbers = config.data.batch_size, count()

    def make() -> None:
        for _ in range(BATCHES):
            built.train.batch(next(numbers) * size, size)

    tokens = BATCHES * size * config.data.sequence_length
    rate = tokens / medians("data: batches", {"batches": make}, rounds, CPU, say)["batches"]
    most = most_tokens_per_second(config)
    return compared("data_batches", rate, most, TRAINING, "tokens/s", more_is_better=True)


def sample(config: Config, say: Callable[[str], None]) -> list[Document]:
    """The first training documents, `SAMPLE_BYTES` of them."""
    corpus = build_corpus(config.data.source, read_text(config.data), config.data.validation_fraction, say)
    chosen, size = [], 0
    for document in corpus.train:
        if size >= SAMPLE_BYTES:
            break
        chosen.append(document)
        size += len(document.text.encode())
    return chosen


def most_tokens_per_second(config: Config) -> float | None:
    """What training could take if the device did nothing but its products; None if its peak is not known."""
    device, _ = choose_device(config.device)
    dtype, _ = choose_precision(device, config.precision.format)
    peak = matmul_peak(device, product_dtype(device, config.precision, dtype))
    flops = flops_per_token(config.model, config.data.sequence_length, mtp=config.model.mtp.depth > 0)
    return None if peak.flops_per_second is None else peak.flops_per_second / flops
