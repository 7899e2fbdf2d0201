"""Decoding and its memory against transformers' generate(): same weights, same prompts, greedy.

The peer loads the weights from an export. Both decode in this process and take turns, so that whatever else
the machine does falls on both alike; speeds are medians over the rounds, without the reading of the prompt.

Recent transformers keep MLA's latents in their cache too, and make all keys and values of all heads from it
again for each token. So memory is told twice: of the cache alone, and at the peak of decoding one token.
"""

import importlib.metadata
import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from benchmarks.memory import peak_of
from benchmarks.precisions import refuse_fp8
from benchmarks.result import Result, compared
from deepseek_mini.compose import ConfigError
from deepseek_mini.config import Config, ModelConfig, MtpConfig
from deepseek_mini.cost.hardware import choose_device, choose_precision
from deepseek_mini.inference.generate import Generation
from deepseek_mini.inference.sampling import Sampling
from deepseek_mini.interop.export import Encoding, export_run
from deepseek_mini.interop.load import write_run
from deepseek_mini.model.transformer import Transformer, build_model

CONTEXT = 512
"""Tokens of each prompt."""
DECODED = 24
BATCH_SIZES = (1, 8)
V3_HEADS = {
    "n_heads": 128, "q_lora_rank": 128, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
    "v_head_dim": 128, "n_layers": 2, "n_dense_layers": 1,
}  # fmt: skip
"""Heads as in V3; layers as few as memory needs to be told."""


def generation(config: Config, rounds: int, say: Callable[[str], None]) -> list[Result]:
    """Tokens per second of decoding, and memory. Raises ConfigError for what the user can mend."""
    if importlib.util.find_spec("transformers") is None:
        raise ConfigError("the peer is missing; install it with: pip install 'deepseek-mini[hf]'")
    refuse_fp8("generation", config)
    device, _ = choose_device(config.device)
    if choose_precision(device, config.precision.format)[0] is not torch.float32:
        say(f"generation: FP32 and not BF16, whatever precision={config.precision.format} says")
    room = CONTEXT + DECODED
    if config.model.max_seq_len < room:
        raise ConfigError(f"model.max_seq_len={config.model.max_seq_len} must be at least {room} here")
    peer_name = f"transformers {importlib.metadata.version('transformers')} generate"
    model_config = replace(config.model, mtp=MtpConfig(depth=0))
    try:
        model, peer = pair(model_config, device, config.seed)
    except ValueError as error:
        raise ConfigError(f"the peer does not have this model: {error}") from error
    results = [compare_speed(model, peer, peer_name, size, rounds, DECODED, say) for size in BATCH_SIZES]
    wide = pair(replace(model_config, **V3_HEADS), device, config.seed)
    results.append(compare_speed(*wide, peer_name, 1, min(rounds, 3), 4, say))
    return results + compare_memory(*wide, peer_name)


def pair(config: ModelConfig, device: torch.device, seed: int) -> tuple[Transformer, Any]:
    """A model of ours, and transformers' from an export of it."""
    from transformers import AutoModelForCausalLM

    model = build_model(config, torch.device("cpu"), seed).eval()
    with tempfile.TemporaryDirectory() as folder:
        run, out = Path(folder) / "run", Path(folder) / "out"
        write_run(run, Config(model=config), dict(model.state_dict()))
        export_run(run, out, Encoding())
        peer: Any = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    return model.to(device), peer.eval().to(device)


def compare_speed(
    model: Transformer,
    peer: Any,
    peer_name: str,
    size: int,
    rounds: int,
    length: int,
    say: Callable[[str], None],
) -> Result:
    """Decoded tokens per second of a batch, all rows together, over `length` tokens each."""
    name = f"generation_decode_batch_{size}"
    unit = f"tokens/s, {_shape(model)}"
    prompts_BT = random_prompts(model, size)
    rates: list[tuple[float, float]] = []
    for number in range(rounds + 1):
        say(f"{name}, {_shape(model)}: round {number} of {rounds}" + (" (warm-up)" if number == 0 else ""))
        (our_seconds, our_first), (peer_seconds, peer_first) = (
            decode_ours(model, prompts_BT, length),
            decode_peer(peer, prompts_BT, length),
        )
        if our_first != peer_first:
            raise RuntimeError(f"the first tokens differ: {our_first} and {peer_first}: not the same model")
        rates.append((size / our_seconds, size / peer_seconds))
    ours, theirs = (statistics.median(column) for column in zip(*rates[1:], strict=True))
    return compared(name, ours, theirs, peer_name, unit, more_is_better=True)


def decode_ours(model: Transformer, prompts_BT: torch.Tensor, length: int) -> tuple[float, list[int]]:
    """Median seconds of a pass behind the prompts, and the first token of each row."""
    times, first = [], []
    for new in Generation(model, prompts_BT.tolist(), length, Sampling(0)):
        first = first or [tokens[0] for tokens in new]
        times.append(time.perf_counter())
    return _median_gap(times), first


def decode_peer(peer: Any, prompts_BT: torch.Tensor, length: int) -> tuple[float, list[int]]:
    """The same of the peer, whose stopping criteria are asked after each pass."""
    times: list[float] = []

    def note_time(tokens: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        times.append(time.perf_counter())
        return torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)

    prompts_BT = prompts_BT.to(peer.device)
    tokens_BT = peer.generate(
        prompts_BT,
        attention_mask=torch.ones_like(prompts_BT),
        max_new_tokens=length,
        do_sample=False,
        pad_token_id=0,
        stopping_criteria=[note_time],
    )
    return _median_gap(times), tokens_BT[:, prompts_BT.shape[1]].tolist()


def compare_memory(model: Transformer, peer: Any, peer_name: str) -> list[Result]:
    """Kilobytes of cache per token, and mebibytes of cache and scratch while one token is decoded."""
    prompts_BT = random_prompts(model, 1)
    (our_cache, our_peak), (peer_cache, peer_peak) = (
        measure_ours(model, prompts_BT),
        measure_peer(peer, prompts_BT),
    )
    units = f"kB per token, {_shape(model)}", f"MiB, {_shape(model)}"
    scales = 1000 * CONTEXT, 2**20
    return [
        compared(name, ours / scale, theirs / scale, peer_name, unit, more_is_better=False)
        for name, ours, theirs, unit, scale in (
            ("generation_cache", our_cache, peer_cache, units[0], scales[0]),
            ("generation_decode_peak_memory", our_peak, peer_peak, units[1], scales[1]),
        )
    ]


def measure_ours(model: Transformer, prompts_BT: torch.Tensor) -> tuple[int, int]:
    """Bytes of the cached prompt, and the peak of cache and scratch while a token is decoded."""
    generation = Generation(model, prompts_BT.tolist(), 3, Sampling(0))
    passes = iter(generation)
    next(passes)
    next(passes)
    cache = generation.decoder.trunk.cache
    return cache.bytes_per_token * CONTEXT, cache.nbytes + peak_of(lambda: next(passes))


@torch.inference_mode()
def measure_peer(peer: Any, prompts_BT: torch.Tensor) -> tuple[int, int]:
    """The same of the peer: what its cache holds after the prompt, and one step on it."""
    prompts_BT = prompts_BT.to(peer.device)
    cache = peer(prompts_BT, use_cache=True, logits_to_keep=1).past_key_values
    tensors = [x for layer in cache.layers for x in vars(layer).values() if isinstance(x, torch.Tensor)]
    held = sum(tensor.nbytes for tensor in tensors)
    del tensors
    token_B1 = prompts_BT[:, :1]
    peer(token_B1, past_key_values=cache, use_cache=True)
    return held, held + peak_of(lambda: peer(token_B1, past_key_values=cache, use_cache=True))


def random_prompts(model: Transformer, size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(size)
    return torch.randint(model.config.vocab_size, (size, CONTEXT), generator=generator)


def _shape(model: Transformer) -> str:
    config = model.config
    return f"{config.n_layers} layers, {config.n_heads} heads, {CONTEXT} tokens before, FP32"


def _median_gap(times: list[float]) -> float:
    return statistics.median(b - a for a, b in pairwise(times))
