"""The training step against transformers' DeepseekV3ForCausalLM: same shape, same text, same AdamW.

Each contender is a process of its own, which tells its peak memory. They take turns, a step each, so that
whatever else the machine does falls on all alike; speeds are medians over the rounds.
"""

import importlib.metadata
import importlib.util
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

import torch
from torch import nn

from benchmarks.result import Result, compared
from deepseek_mini.compose import ConfigError
from deepseek_mini.config import Attention, Config, Format, ModelConfig, Optimizer, ScoreFunction
from deepseek_mini.cost.flops import flops_per_token
from deepseek_mini.cost.hardware import Peak, choose_device, choose_precision, matmul_peak
from deepseek_mini.data import Batch, build_data
from deepseek_mini.model.transformer import build_model, build_on_meta
from deepseek_mini.optim.build import build_optimizers
from deepseek_mini.optim.schedule import StepPlan
from deepseek_mini.training.setup import keep_freed_memory, make_deterministic
from deepseek_mini.training.step import train_step

WARMUP_STEPS = 2
LEARNING_RATE = 2.2e-4

Step = Callable[[Batch], float]
"""Trains on a batch and returns its loss."""


@dataclass(frozen=True, slots=True)
class Contender:
    """Who trains, and how."""

    name: str
    experts: str | None
    """transformers' implementation of the experts; None is this package."""
    precision: Format
    keeps_memory: bool
    """Whether the C library is told to keep freed memory, as this package's trainer tells it."""


@dataclass(slots=True)
class Record:
    """What a contender did; empty if it failed."""

    seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    peak_bytes: int | None = None


def training(config: Config, rounds: int, say: Callable[[str], None]) -> list[Result]:
    """Tokens per second, MFU and peak memory of a step. Raises ConfigError for what the user can mend."""
    if importlib.util.find_spec("transformers") is None:
        raise ConfigError("the peer is missing; install it with: pip install 'deepseek-mini[hf]'")
    if config.model.attention is not Attention.mla or config.model.score_func is not ScoreFunction.sigmoid:
        raise ConfigError("the peer has model.attention=mla and model.score_func=sigmoid only; set these")
    if config.model.mtp.depth:
        say("model.mtp.depth=0 here: the peer does not train MTP")
        config.model.mtp.depth = 0
    if config.optimizer.name is not Optimizer.adamw:
        say("optimizer.name=adamw here, as the peer has it")
        config.optimizer.name = Optimizer.adamw
    device, _ = choose_device(config.device)
    size = config.data.batch_size
    train = build_data(config.data, config.model.vocab_size, config.seed, say).train
    batches = [train.batch(i * size, size) for i in range(WARMUP_STEPS + rounds)]
    results = []
    for precision in _precisions(device, say):
        dtype, _ = choose_precision(device, precision)
        ours, *peers = _contenders(precision, device)
        before = matmul_peak(device, dtype)
        records = _take_turns([ours, *peers], config, batches, say)
        _require_same_task(records, ours)
        peak = max(before, matmul_peak(device, dtype), key=lambda peak: peak.flops_per_second or 0)
        for peer in peers:
            results += _compare(precision, records[ours], records[peer], peer.name, config, peak)
    return results


def _precisions(device: torch.device, say: Callable[[str], None]) -> list[Format]:
    dtype, reason = choose_precision(device, Format.auto)
    if dtype is torch.bfloat16:
        return [Format.fp32, Format.bf16]
    say(f"bf16 is left out: {reason}")
    return [Format.fp32]


def _contenders(precision: Format, device: torch.device) -> list[Contender]:
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
    return contenders


def _take_turns(
    contenders: list[Contender], config: Config, batches: list[Batch], say: Callable[[str], None]
) -> dict[Contender, Record]:
    """Train all contenders on all batches, a step each in turn."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    pipes: dict[Contender, Connection] = {}
    for contender in contenders:
        pipes[contender], far_end = context.Pipe()
        context.Process(target=work, args=(far_end, contender, config), daemon=True).start()
        far_end.close()
    records = {contender: Record() for contender in contenders}
    for number, batch in enumerate(batches, start=1):
        say(f"{contenders[0].precision}: step {number} of {len(batches)}")
        for contender, pipe in list(pipes.items()):
            try:
                pipe.send((batch.tokens_BS.numpy(), batch.documents_BS.numpy()))
                seconds, loss, peak_bytes = pipe.recv()
            except (EOFError, ConnectionError):
                say(f"{contender.name} failed, and is left out")
                records[contender] = Record()
                pipes.pop(contender).close()
                continue
            record = records[contender]
            record.losses.append(loss)
            record.seconds += [seconds] if number > WARMUP_STEPS else []
            record.peak_bytes = peak_bytes
    for pipe in pipes.values():
        pipe.close()
    return records


def work(pipe: Connection, contender: Contender, config: Config) -> None:
    """A contender's process: for each batch, train on it and report seconds, loss and peak memory."""
    device, _ = choose_device(config.device)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=contender.precision is Format.bf16)
    if contender.keeps_memory:
        keep_freed_memory()
    try:
        if contender.experts is None:
            step = our_step(config, device, autocast)
        else:
            step = peer_step(config, contender.experts, device, autocast)
        while True:
            tokens, documents = pipe.recv()
            batch = Batch(torch.from_numpy(tokens), torch.from_numpy(documents)).to(device)
            begin = time.perf_counter()
            loss = step(batch)
            pipe.send((time.perf_counter() - begin, loss, _peak_bytes(device)))
    except EOFError:
        return
    except Exception as error:
        print(f"{contender.name}: {type(error).__name__}: {error}", file=sys.stderr)


def our_step(config: Config, device: torch.device, autocast: torch.autocast) -> Step:
    """The trainer's own step, with all that belongs to it: balance loss, bias rule, check for NaN."""
    make_deterministic(device)
    model = build_model(config.model, device, config.seed)
    optimizers = build_optimizers(model, config.optimizer)
    size = config.trainer.micro_batch_size or config.data.batch_size
    plan = StepPlan(1, 0, config.data.batch_size, 0, LEARNING_RATE, mtp_weight=0.0, bias_update_rate=1e-3)

    def step(batch: Batch) -> float:
        clip = config.optimizer.clip_norm
        return train_step(model, optimizers, batch, plan, size, clip, autocast).main_loss.item()

    return step


def peer_step(config: Config, experts: str, device: torch.device, autocast: torch.autocast) -> Step:
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

    def step(batch: Batch) -> float:
        optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=device)
        for micro in batch.split(size):
            inputs, labels = micro.tokens_BS[:, :-1], micro.tokens_BS[:, 1:].contiguous()
            with autocast:
                loss = model(input_ids=inputs, labels=inputs, shift_labels=labels).loss
            share = loss * (len(inputs) / len(batch.tokens_BS))
            share.backward()
            total += share.detach()
        nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
        optimizer.step()
        return total.item()

    return step


def peer_model(config: ModelConfig, experts: str) -> nn.Module:
    """DeepseekV3ForCausalLM of the same shape. Raises RuntimeError if it has other parameters than ours."""
    from transformers import AutoModelForCausalLM, DeepseekV3Config

    peer_config = DeepseekV3Config(
        vocab_size=config.vocab_size,
        hidden_size=config.dim,
        intermediate_size=config.inter_dim,
        moe_intermediate_size=config.moe_inter_dim,
        num_hidden_layers=config.n_layers,
        first_k_dense_replace=config.n_dense_layers,
        num_attention_heads=config.n_heads,
        num_key_value_heads=config.n_heads,
        n_routed_experts=config.n_routed_experts,
        n_shared_experts=config.n_shared_experts,
        num_experts_per_tok=config.n_activated_experts,
        n_group=config.n_expert_groups,
        topk_group=config.n_limited_groups,
        routed_scaling_factor=config.route_scale,
        q_lora_rank=config.q_lora_rank or None,
        kv_lora_rank=config.kv_lora_rank,
        qk_nope_head_dim=config.qk_nope_head_dim,
        qk_rope_head_dim=config.qk_rope_head_dim,
        v_head_dim=config.v_head_dim,
        max_position_embeddings=config.max_seq_len,
        initializer_range=config.init_std,
        use_cache=False,
    )
    model = AutoModelForCausalLM.from_config(peer_config, experts_implementation=experts)
    ours = sum(p.numel() for p in build_on_meta(config).parameters())
    theirs = sum(p.numel() for p in model.parameters())
    if ours != theirs:
        raise RuntimeError(f"the peer has {theirs} parameters, we have {ours}: not the same shape")
    return model


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
    tokens = config.data.batch_size * config.data.sequence_length
    flops = tokens * flops_per_token(config.model, config.data.sequence_length)

    def rate(record: Record, per_step: float) -> float | None:
        return per_step / statistics.median(record.seconds) if record.seconds else None

    def gibibytes(record: Record) -> float | None:
        return record.peak_bytes / 2**30 if record.peak_bytes else None

    name, more = f"training_{precision}", {"more_is_better": True}
    results = [
        compared(f"{name}_throughput", rate(ours, tokens), rate(peer, tokens), peer_name, "tokens/s", **more)
    ]
    if peak.flops_per_second is not None:
        share = flops / peak.flops_per_second
        unit = f"of {peak.flops_per_second:.3g} FLOP/s ({peak.source})"
        results.append(compared(f"{name}_mfu", rate(ours, share), rate(peer, share), peer_name, unit, **more))
    memory = compared(
        f"{name}_peak_memory", gibibytes(ours), gibibytes(peer), peer_name, "GiB", more_is_better=False
    )
    return [*results, memory]


def _peak_bytes(device: torch.device) -> int:
    """Of a GPU what torch allocated at most; of a CPU the largest resident size of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # not on Windows

    kilobytes_or_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes_or_bytes * (1 if sys.platform == "darwin" else 1024)
