"""The training step against transformers' DeepseekV3ForCausalLM: same shape, same text, same AdamW.

Each contender is a process of its own, which tells its peak memory; its stderr is shown only if it fails.
They take turns, a step each, so that whatever else the machine does falls on all alike; speeds are medians
over the rounds. Memory is told twice: of the process, and, by torch's own account of one more step, what its
peak lies above weights, gradients and optimizer state.
"""

import importlib.metadata
import importlib.util
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.ceilings import ceilings
from benchmarks.memory import peak_above_state
from benchmarks.peers import peer_model, require_routing_of_peers
from benchmarks.precisions import precisions
from benchmarks.result import Result, compared
from deepseek_mini.compose import ConfigError
from deepseek_mini.config import Attention, Config, Format, Optimizer, ScoreFunction
from deepseek_mini.cost.flops import flops_per_token
from deepseek_mini.cost.hardware import Peak, choose_device, choose_precision, matmul_peak
from deepseek_mini.data import Batch, build_data
from deepseek_mini.model.recompute import recompute
from deepseek_mini.model.transformer import build_model
from deepseek_mini.optim.build import build_optimizers
from deepseek_mini.optim.schedule import StepPlan
from deepseek_mini.training.setup import keep_freed_memory, make_deterministic
from deepseek_mini.training.step import train_step

WARMUP_STEPS = 2
LEARNING_RATE = 2.2e-4


@dataclass(frozen=True, slots=True)
class Training:
    """A model, and the step that trains it on a batch and returns its loss."""

    model: nn.Module
    step: Callable[[Batch], float]


@dataclass(frozen=True, slots=True)
class Contender:
    """Who trains, and how."""

    name: str
    experts: str | None
    """transformers' implementation of the experts; None is this package."""
    precision: Format
    keeps_memory: bool
    """Whether the C library is told to keep freed memory, as this package's trainer tells it."""
    compiled: bool = False
    """Whether the model is given to torch.compile."""


@dataclass(slots=True)
class Record:
    """What a contender did; empty if it failed."""

    seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    peak_bytes: int | None = None
    """Of the process."""
    bytes_above_state: int | None = None


def training(
    config: Config, rounds: int, say: Callable[[str], None], compile_peers: bool = False
) -> list[Result]:
    """Tokens per second, MFU and peak memory of a step. Raises ConfigError for what the user can mend.

    With `compile_peers` the peer is also timed under torch.compile, which takes minutes to warm up.
    """
    if importlib.util.find_spec("transformers") is None:
        raise ConfigError("the peer is missing; install it with: pip install 'deepseek-mini[hf]'")
    if config.model.attention is not Attention.mla or config.model.score_func is not ScoreFunction.sigmoid:
        raise ConfigError("the peer has model.attention=mla and model.score_func=sigmoid only; set these")
    require_routing_of_peers(config.model)
    device, _ = choose_device(config.device)
    formats = precisions("training", config, device, say)
    if config.model.mtp.depth:
        say("model.mtp.depth=0 here: the peer does not train MTP")
        config.model.mtp.depth = 0
    if config.optimizer.name is not Optimizer.adamw:
        say("optimizer.name=adamw here, as the peer has it")
        config.optimizer.name = Optimizer.adamw
    size = config.data.batch_size
    train = build_data(config.data, config.model.vocab_size, config.seed, say).train
    batches = [train.batch(i * size, size) for i in range(WARMUP_STEPS + rounds)]
    results, fastest = [], []
    peaks: dict[Format, Peak] = {}
    for precision in formats:
        dtype, _ = choose_precision(device, precision)
        ours, *peers = _contenders(precision, device, compile_peers)
        before = matmul_peak(device, dtype)
        records = _take_turns([ours, *peers], config, batches, say)
        _require_same_task(records, ours)
        peak = max(before, matmul_peak(device, dtype), key=lambda peak: peak.flops_per_second or 0)
        peaks[precision] = peak
        for peer in peers:
            results += _compare(precision, records[ours], records[peer], peer.name, config, peak)
        fastest.append((records[ours], [records[peer] for peer in peers]))
    return [*results, _best(fastest, config), *ceilings(device, peaks, rounds)]


def _contenders(precision: Format, device: torch.device, compile_peers: bool) -> list[Contender]:
    """This package, then the peer in its settings."""
    peer = f"transformers {importlib.metadata.version('transformers')} DeepseekV3ForCausalLM"
    contenders = [
        Contender("deepseek_mini", None, precision, keeps_memory=True),
        Contender(f"{peer}, eager experts", "eager", precision, keeps_memory=False),
        Contender(f"{peer}, grouped_mm experts", "grouped_mm", precision, keeps_memory=False),
    ]
    if device.type == "cpu":
        name = f"{peer}, grouped_mm experts, freed memory kept as ours"
        contenders.append(Contender(name, "grouped_mm", precision, keeps_memory=True))
    if compile_peers:
        contenders += [
            replace(contender, name=f"{contender.name}, compiled", compiled=True)
            for contender in contenders
            if contender.experts is not None
        ]
    return contenders


def _take_turns(
    contenders: list[Contender], config: Config, batches: list[Batch], say: Callable[[str], None]
) -> dict[Contender, Record]:
    """Train all contenders on all batches, a step each in turn."""
    with tempfile.TemporaryDirectory() as folder:
        logs = {contender: Path(folder, str(number)) for number, contender in enumerate(contenders)}
        return _converse(_start(logs, config), logs, batches, say)


def _start(logs: dict[Contender, Path], config: Config) -> dict[Contender, Connection]:
    """A process for each contender, which writes its stderr to its log; the near ends of their pipes."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    pipes: dict[Contender, Connection] = {}
    for contender, log in logs.items():
        log.touch()
        pipes[contender], far_end = context.Pipe()
        context.Process(target=work, args=(far_end, contender, config, log), daemon=True).start()
        far_end.close()
    return pipes


def _converse(
    pipes: dict[Contender, Connection],
    logs: dict[Contender, Path],
    batches: list[Batch],
    say: Callable[[str], None],
) -> dict[Contender, Record]:
    """Send each batch to all contenders in turn; the log of one that fails is shown."""
    contenders = list(pipes)
    records = {contender: Record() for contender in contenders}
    for number, batch in enumerate([*batches, batches[-1]], start=1):
        for_memory = number > len(batches)
        say(f"{contenders[0].precision}: " + ("memory" if for_memory else f"step {number} of {len(batches)}"))
        for contender, pipe in list(pipes.items()):
            try:
                pipe.send((batch.tokens_BS.numpy(), batch.documents_BS.numpy(), for_memory))
                seconds, loss, peak_bytes, bytes_above_state = pipe.recv()
            except (EOFError, ConnectionError):
                said = logs[contender].read_text(errors="replace").strip()
                say(f"{contender.name} failed, and is left out:\n{said}")
                records[contender] = Record()
                pipes.pop(contender).close()
                continue
            record = records[contender]
            if for_memory:
                record.bytes_above_state = bytes_above_state
                continue
            record.losses.append(loss)
            record.seconds += [seconds] if number > WARMUP_STEPS else []
            record.peak_bytes = peak_bytes
    for pipe in pipes.values():
        pipe.close()
    return records


def work(pipe: Connection, contender: Contender, config: Config, log: Path) -> None:
    """A contender's process: for each batch, train on it and report seconds, loss and peak memory.

    Where the step is for memory's account, its seconds mean nothing.
    """
    with log.open("w") as file:
        os.dup2(file.fileno(), sys.stderr.fileno())
    device, _ = choose_device(config.device)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=contender.precision is Format.bf16)
    if contender.keeps_memory:
        keep_freed_memory()
    try:
        if contender.experts is None:
            trained = our_training(config, device, autocast)
        else:
            trained = peer_training(config, contender.experts, device, autocast, contender.compiled)
        while True:
            tokens, documents, for_memory = pipe.recv()
            batch = Batch(torch.from_numpy(tokens), torch.from_numpy(documents))
            if for_memory:
                pipe.send((0.0, 0.0, 0, peak_above_state(partial(trained.step, batch), trained.model)))
                continue
            begin = time.perf_counter()
            loss = trained.step(batch)
            pipe.send((time.perf_counter() - begin, loss, _peak_bytes(device), None))
    except EOFError:
        return
    except Exception as error:
        print(f"{contender.name}: {type(error).__name__}: {error}", file=sys.stderr)


def our_training(config: Config, device: torch.device, autocast: torch.autocast) -> Training:
    """The trainer's own step, with all that belongs to it: balance loss, bias rule, check for NaN."""
    make_deterministic(device)
    model = build_model(config.model, device, config.seed)
    recompute(model, config.trainer.recompute)
    optimizers = build_optimizers(model, config.optimizer)
    size = config.trainer.micro_batch_size or config.data.batch_size
    plan = StepPlan(1, 0, config.data.batch_size, 0, LEARNING_RATE, mtp_weight=0.0, bias_update_rate=1e-3)

    def step(batch: Batch) -> float:
        clip = config.optimizer.clip_norm
        return train_step(model, optimizers, batch, plan, size, clip, autocast).main_loss.item()

    return Training(model, step)


def peer_training(
    config: Config, experts: str, device: torch.device, autocast: torch.autocast, compiled: bool = False
) -> Training:
    """The plain loop around transformers' model: forward, backward, clip, AdamW."""
    torch.manual_seed(config.seed)
    model = peer_model(config.model, experts).to(device).train()
    settings = config.optimizer
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=LEARNING_RATE,
        betas=(settings.beta1, settings.beta2),
        eps=settings.eps,
        weight_decay=settings.weight_decay,
        fused=True,
    )
    size = config.trainer.micro_batch_size or config.data.batch_size
    predict: Any = torch.compile(model) if compiled else model

    def step(batch: Batch) -> float:
        optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=device)
        for micro in batch.to(device).split(size):
            inputs, labels = micro.tokens_BS[:, :-1], micro.tokens_BS[:, 1:].contiguous()
            with autocast:
                loss = predict(input_ids=inputs, labels=inputs, shift_labels=labels).loss
            share = loss * (len(inputs) / len(batch.tokens_BS))
            share.backward()
            total += share.detach()
        nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
        optimizer.step()
        return total.item()

    return Training(model, step)


def _require_same_task(records: dict[Contender, Record], ours: Contender) -> None:
    """The first losses, before any update, must agree: both are near log(vocabulary)."""
    if not records[ours].losses:
        raise RuntimeError("our own training step failed")
    for contender, record in records.items():
        if record.losses and abs(record.losses[0] / records[ours].losses[0] - 1) > 0.01:
            raise RuntimeError(
                f"{contender.name} starts at a loss of {record.losses[0]:.3f}, we start at "
                f"{records[ours].losses[0]:.3f}: not the same task"
            )


def _compare(
    precision: Format, ours: Record, peer: Record, peer_name: str, config: Config, peak: Peak
) -> list[Result]:
    """Speed, MFU and memory of this package beside one peer."""
    tokens = _tokens(config)
    flops = tokens * flops_per_token(config.model, config.data.sequence_length)
    name, more = f"training_{precision}", {"more_is_better": True}
    results = [
        compared(
            f"{name}_throughput", _rate(ours, tokens), _rate(peer, tokens), peer_name, "tokens/s", **more
        )
    ]
    if peak.flops_per_second is not None:
        share = flops / peak.flops_per_second
        unit = f"of {peak.flops_per_second:.3g} FLOP/s ({peak.source})"
        results.append(
            compared(f"{name}_mfu", _rate(ours, share), _rate(peer, share), peer_name, unit, **more)
        )
    for what, unit, our_bytes, peer_bytes in (
        ("peak_memory", "GiB, the process", ours.peak_bytes, peer.peak_bytes),
        ("memory_above_state", "GiB", ours.bytes_above_state, peer.bytes_above_state),
    ):
        values = _gibibytes(our_bytes), _gibibytes(peer_bytes)
        results.append(compared(f"{name}_{what}", *values, peer_name, unit, more_is_better=False))
    return results


def _best(fastest: list[tuple[Record, list[Record]]], config: Config) -> Result:
    """Our best precision beside the peer's best setting in any."""
    tokens = _tokens(config)
    ours = max(filter(None, (_rate(record, tokens) for record, _ in fastest)), default=None)
    theirs = max(
        filter(None, (_rate(record, tokens) for _, peers in fastest for record in peers)), default=None
    )
    name, peer_name = "training_throughput_best", "the best of the peer's settings above"
    return compared(name, ours, theirs, peer_name, "tokens/s", more_is_better=True)


def _tokens(config: Config) -> int:
    """Of a step."""
    return config.data.batch_size * config.data.sequence_length


def _rate(record: Record, per_step: float) -> float | None:
    return per_step / statistics.median(record.seconds) if record.seconds else None


def _gibibytes(size: int | None) -> float | None:
    return size / 2**30 if size else None


def _peak_bytes(device: torch.device) -> int:
    """Of a GPU what torch allocated at most; of a CPU the largest resident size of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # not on Windows

    kilobytes_or_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes_or_bytes * (1 if sys.platform == "darwin" else 1024)
