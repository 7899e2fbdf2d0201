"""What more experts, longer sequences and a larger vocabulary cost.

Steps of training take turns in this process. Experts: 16 and 256 of them at the same experts per token, so at
the same active parameters. Sequences: the same number of tokens in longer rows, beside the FLOPs of a longer
attention. Vocabulary: memory at the peak of a step above weights, gradients and optimizer state, beside
transformers' model, on the same text.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from itertools import count

import torch

from benchmarks.memory import peak_above_state
from benchmarks.precisions import one_precision
from benchmarks.result import Result, compared
from benchmarks.timing import Work, medians
from benchmarks.training import Training, our_training, peer_training
from deepseek_mini.compose import ConfigError
from deepseek_mini.config import Attention, Config
from deepseek_mini.cost.flops import flops_per_token
from deepseek_mini.cost.hardware import choose_device, choose_precision
from deepseek_mini.data import Split, build_data
from deepseek_mini.training.setup import keep_freed_memory

TOKENS = 16_384
"""Of a step."""
EXPERTS = 16, 256
EXPERTS_LIMIT = 1.3
LENGTHS = 512, 4096
VOCABULARIES = 8_192, 65_536
VOCABULARY_TOKENS = 8, 512
"""Rows and length of the step whose memory is told."""


def scaling(config: Config, rounds: int, say: Callable[[str], None]) -> list[Result]:
    """Raises ValueError if the text or the shape does not allow for a case."""
    device, _ = choose_device(config.device)
    one_precision("scaling", config, device, say)
    train = long_enough_text(config, say)
    keep_freed_memory()
    return [
        experts(config, train, rounds, device, say),
        sequences(config, train, rounds, device, say),
        *vocabularies(config, train, device, say),
    ]


def long_enough_text(config: Config, say: Callable[[str], None]) -> Split:
    """The training text. Raises ConfigError if it, or the model, is too short for a row of some case."""
    lengths = sorted({*LENGTHS, VOCABULARY_TOKENS[1]})
    rows, longest = f"scaling: its rows have {' and '.join(map(str, lengths))} tokens", lengths[-1]
    if config.model.max_seq_len < longest:
        raise ConfigError(f"{rows}; model.max_seq_len={config.model.max_seq_len} must be at least {longest}")
    train = build_data(config.data, config.model.vocab_size, config.seed, say).train
    if train.n_tokens <= longest:
        raise ConfigError(f"{rows}, and the training text has {train.n_tokens}; give more text (data.path)")
    return train


def experts(
    config: Config, train: Split, rounds: int, device: torch.device, say: Callable[[str], None]
) -> Result:
    """Time of a step with many routed experts over that with few."""
    length = config.data.sequence_length
    sized = with_rows(config, max(TOKENS // length, 1), length)
    cases = [replace(sized, model=replace(config.model, n_routed_experts=n)) for n in EXPERTS]
    name = f"scaling_experts_{EXPERTS[0]}_to_{EXPERTS[1]}"
    ratio, tokens = time_ratio(name, cases, train, rounds, device, say)
    unit = f"x the time of a step of {tokens} tokens"
    return compared(name, ratio, EXPERTS_LIMIT, "the limit", unit, more_is_better=False)


def sequences(
    config: Config, train: Split, rounds: int, device: torch.device, say: Callable[[str], None]
) -> Result:
    """Time of a step of long rows over that of as many tokens in short ones."""
    cases = [with_rows(config, max(TOKENS // length, 1), length) for length in LENGTHS]
    name = f"scaling_sequence_{LENGTHS[0]}_to_{LENGTHS[1]}"
    ratio, tokens = time_ratio(name, cases, train, rounds, device, say)
    mtp = config.model.mtp.depth > 0
    short, long = (flops_per_token(config.model, length, mtp=mtp) for length in LENGTHS)
    unit = f"x the time of a step of {tokens} tokens"
    return compared(name, ratio, long / short, "its FLOPs", unit, more_is_better=False)


def vocabularies(
    config: Config, train: Split, device: torch.device, say: Callable[[str], None]
) -> list[Result]:
    """Peak memory above the state at each vocabulary, and by how much it grows."""
    small = with_rows(config, *VOCABULARY_TOKENS)
    small = replace(small, model=replace(config.model, mtp=replace(config.model.mtp, depth=0)))
    is_mla = config.model.attention is Attention.mla
    has_peer = is_mla and importlib.util.find_spec("transformers") is not None
    if not has_peer:
        why = "it is not installed" if is_mla else f"it has no model.attention={config.model.attention}"
        say(f"scaling: transformers is left out: {why}")
    ours: list[float] = []
    theirs: list[float | None] = []
    for vocabulary in VOCABULARIES:
        say(f"scaling: memory of a step with a vocabulary of {vocabulary}")
        sized = replace(small, model=replace(small.model, vocab_size=vocabulary))
        autocast = autocast_of(sized, device)
        ours.append(memory_above_state(our_training(sized, device, autocast), small, train))
        peer = peer_training(sized, "grouped_mm", device, autocast) if has_peer else None
        theirs.append(memory_above_state(peer, small, train) if peer else None)
    rows = []
    peer_name = "transformers, grouped_mm experts"
    for vocabulary, our_bytes, their_bytes in zip(VOCABULARIES, ours, theirs, strict=True):
        values = our_bytes / 2**30, None if their_bytes is None else their_bytes / 2**30
        unit = "GiB above weights, gradients and optimizer state"
        rows.append(
            compared(
                f"scaling_memory_vocabulary_{vocabulary}", *values, peer_name, unit, more_is_better=False
            )
        )
    growth = None if theirs[0] is None or theirs[1] is None else theirs[1] / theirs[0]
    unit = f"x from a vocabulary of {VOCABULARIES[0]} to {VOCABULARIES[1]}"
    rows.append(
        compared("scaling_memory_growth", ours[1] / ours[0], growth, peer_name, unit, more_is_better=False)
    )
    return rows


def with_rows(config: Config, rows: int, length: int) -> Config:
    return replace(config, data=replace(config.data, batch_size=rows, sequence_length=length))


def time_ratio(
    title: str,
    cases: list[Config],
    train: Split,
    rounds: int,
    device: torch.device,
    say: Callable[[str], None],
) -> tuple[float, int]:
    """Seconds of the second case's step over the first's, and the tokens of a step."""
    works = {
        str(i): step_of(our_training(case, device, autocast_of(case, device)), case, train)
        for i, case in enumerate(cases)
    }
    seconds = medians(title, works, rounds, device, say)
    return seconds["1"] / seconds["0"], cases[0].data.batch_size * cases[0].data.sequence_length


def memory_above_state(trained: Training, config: Config, train: Split) -> int:
    step = step_of(trained, config, train)
    step()
    return peak_above_state(step, trained.model)


def step_of(trained: Training, config: Config, train: Split) -> Work:
    """A training step on the next batch of the text, in the config's rows."""
    rows = replace(train, sequence_length=config.data.sequence_length)
    size, numbers = config.data.batch_size, count()
    return lambda: trained.step(rows.batch(next(numbers) * size, size))


def autocast_of(config: Config, device: torch.device) -> torch.autocast:
    dtype, _ = choose_precision(device, config.precision.format)
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype is torch.bfloat16)
