"""The pieces of one transformer layer at its true width, as `scripts/extrapolate.py --profile` reads them.

    python scripts/benchmark.py layers --shape v3_671b [--profile FILE] [data.sequence_length=N]

Attention and the MLP of an MoE layer, each with its norm and its residual; a dense layer's MLP beside them.
Of the routed experts there is the share that expert parallelism leaves on one GPU (V3: 4 of 256 on each of
64), and to it come as many rows as all GPUs together send there when balanced: tokens x experts per token,
the same number for each expert, in mixed order. Dispatch and combine between GPUs are not timed. The gate has
the micro-batch's own tokens and all experts.

Method: every round times each pass and each of its products once; medians over the rounds. The forward pass,
and the whole backward pass (input and all weights), are timed as they are. The weight gradient is the
products dW = dY^T X and nothing else, which a zero-bubble schedule does at another time: they are timed
alone, at their shapes. The input gradient is the rest of the backward pass. Of a piece, `gemm` are its
products with weights and `core` is attention's own kernel, both timed alone; `elementwise` is what the pass
takes beside them (norms, rotation, SwiGLU, sorting, copies, the gate). If they take longer alone than within
the pass, they are scaled down to it, and `elementwise` is 0.

On a CPU the micro-batch is cut down, and the profile says so: it is no evidence for a GPU.
"""

import json
import platform
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.layer_pieces import WORKS, Passes, Piece, Share, build_pieces
from benchmarks.precisions import arithmetic, one_precision
from benchmarks.result import Result, compared
from benchmarks.timing import take_turns
from deepseek_mini.compose import ConfigError, group_options, load_config
from deepseek_mini.config import Config, ModelConfig
from deepseek_mini.cost.hardware import choose_device, device_name, matmul_peak
from deepseek_mini.cost.layer_profile import PARTS, REFERENCE, read_layer_profile
from deepseek_mini.cost.shape import Shape, shape_of
from deepseek_mini.cost.tables import number, read_table
from deepseek_mini.training.setup import keep_freed_memory

CPU_FLOPS = 0.5e12
"""Of one MoE layer's forward and backward pass on a CPU, at most."""


def layers(config: Config, rounds: int, say: Callable[[str], None], path: Path | None = None) -> list[Result]:
    """Milliseconds of each piece beside those of its FLOPs at the device's matmul peak; writes the profile.

    `path` is by default runs/layers_MODEL.json. Raises ConfigError if no shipped model
    has the shape, or it has no MoE layer.
    """
    model = shipped_name(config.model)
    shape = shape_of(config.model)
    if not shape.n_moe_layers:
        raise ConfigError(f"layers: {model} has no MoE layer; choose another model with --shape")
    device, _ = choose_device(config.device)
    dtype = one_precision("layers", config, device, say)
    path = path or Path("runs", f"layers_{model}.json")
    try:
        path.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--profile {path}: {error.strerror}; choose another file") from error
    share = choose_share(model, config, device)
    asked = _asked_tokens(config)
    if share.tokens < asked:
        say(f"layers: {share.tokens} tokens instead of {asked}: a CPU takes too long for more")
    keep_freed_memory()
    peak = matmul_peak(device, dtype)
    content = _describe(model, share, asked, device, dtype)
    results = []
    for name, build in build_pieces(config.model):
        piece = build(share, device, dtype)
        title = f"{name}, {sum(p.numel() for p in piece.module.parameters()) / 1e6:.1f}M parameters here"
        milliseconds, spread = time_piece(title, piece, rounds, device, say)
        content["milliseconds"] |= {f"{name}_{work}": parts for work, parts in milliseconds.items()}
        content["spread_milliseconds"] |= {f"{name}_{work}": ends for work, ends in spread.items()}
        for work, flops in piece_flops(shape, name, share).items():
            ideal = None if peak.flops_per_second is None else 1e3 * flops / peak.flops_per_second
            values = sum(milliseconds[work].values()), ideal
            at_peak = f"its FLOPs at the device's peak ({peak.source})"
            unit = f"ms, {share.tokens} tokens"
            results.append(compared(f"layers_{name}_{work}", *values, at_peak, unit, more_is_better=False))
        del piece
    try:
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"--profile {path}: {error.strerror}; choose another file with --profile"
        ) from error
    read_layer_profile(path)
    say(f"layers: wrote {path}; scripts/extrapolate.py RUN --profile {path} reads it")
    return results + (against_trace(model, content) if device.type == "cuda" else [])


def shipped_name(model: ModelConfig) -> str:
    """The file of configs/model that has this shape, by which a reader knows it."""
    for name in group_options()["model"]:
        if shape_of(load_config([f"model={name}"]).model) == shape_of(model):
            return name
    raise ConfigError("layers: a profile names its model, and no file of configs/model has these dimensions")


def choose_share(model: str, config: Config, device: torch.device) -> Share:
    """One GPU's part of a layer in the model's own plan, and its micro-batch; on a CPU one it can bear."""
    plan = {row["model"]: row for row in read_table("plans")}.get(model, {})
    rows = config.trainer.micro_batch_size or config.data.batch_size
    share = Share(config.model, rows, config.data.sequence_length, int(number(plan, "ep") or 1))
    if device.type == "cpu":
        shape = shape_of(config.model)
        weights = shape.attention_weights + shape.shared_weights + shape.top_k * shape.expert_weights
        while 6 * weights * share.tokens > CPU_FLOPS and share.tokens > 1:
            smaller = {"rows": share.rows // 2} if share.rows > 1 else {"length": share.length // 2}
            share = replace(share, **smaller)
    return share


def time_piece(
    title: str, piece: Piece, rounds: int, device: torch.device, say: Callable[[str], None]
) -> tuple[dict[str, dict[str, float]], dict[str, list[float]]]:
    """Milliseconds by work and part, and the range of the two passes over the rounds."""
    passes = {"pass": Passes(piece.module, piece.inputs)}
    if piece.core is not None:
        passes["core"] = Passes(*piece.core)
    works = {
        f"{name} {work}": function
        for name, timed in passes.items()
        for work, function in (("forward", timed.forward), ("backward", timed.backward))
    }
    products = {f"{work} {i}": do for work in WORKS for i, do in enumerate(piece.products[work])}
    seconds = take_turns(title, works | products, rounds, device, say)
    milliseconds = {name: 1e3 * median(values) for name, values in seconds.items()}
    gemm = {w: sum(milliseconds[f"{w} {i}"] for i in range(len(piece.products[w]))) for w in WORKS}
    core = {direction: milliseconds.get(f"core {direction}", 0.0) for direction in ("forward", "backward")}
    forward = fit(milliseconds["pass forward"], gemm=gemm["forward"], core=core["forward"])
    backward = fit(
        milliseconds["pass backward"],
        gemm=gemm["input_grad"],
        core=core["backward"],
        weight_gemm=gemm["weight_grad"],
    )
    weights = {"gemm": backward.pop("weight_gemm"), "core": 0.0, "elementwise": 0.0}
    parts = {"forward": forward, "input_grad": backward, "weight_grad": weights}
    spread = {
        direction: [1e3 * end(seconds[f"pass {direction}"]) for end in (min, max)]
        for direction in ("forward", "backward")
    }
    return {work: {part: parts[work][part] for part in PARTS} for work in WORKS}, spread


def fit(total: float, **alone: float) -> dict[str, float]:
    """The parts that were timed alone, within a pass that takes `total`; the rest is elementwise."""
    scale = min(1.0, total / sum(alone.values()))
    parts = {name: value * scale for name, value in alone.items()}
    return parts | {"elementwise": max(0.0, total - sum(parts.values()))}


def piece_flops(shape: Shape, name: str, share: Share) -> dict[str, float]:
    """FLOPs of the products of a piece, with half of the attention matrix, by work."""
    weights = {
        "attention": shape.attention_weights,
        "mlp": shape.shared_weights + shape.top_k * shape.expert_weights,
        "dense": shape.dense_weights,
    }[name]
    products = 2.0 * weights * share.tokens
    core = shape.n_heads * (shape.key_width + shape.value_width) * share.length * share.tokens
    core *= name == "attention"
    return {"forward": products + core, "input_grad": products + 2 * core, "weight_grad": products}


def against_trace(model: str, content: dict[str, Any]) -> list[Result]:
    """Our pieces beside those of DeepSeek's own trace, for the same model, per token."""
    trace = read_layer_profile(REFERENCE)
    if model != trace.model or content["sequence_length"] != trace.sequence_length:
        return []
    name = f"{trace.device} trace of DeepSeek, {trace.precision}"
    tokens = content["tokens"]
    rows = []
    for piece, seconds in trace.seconds.items():
        ours, theirs = sum(content["milliseconds"][piece].values()), 1e3 * sum(seconds.values())
        values = ours, theirs * tokens / trace.tokens
        rows.append(compared(f"layers_{piece}", *values, name, f"ms, {tokens} tokens", more_is_better=False))
    return rows


def _asked_tokens(config: Config) -> int:
    return (config.trainer.micro_batch_size or config.data.batch_size) * config.data.sequence_length


def _describe(
    model: str, share: Share, asked: int, device: torch.device, dtype: torch.dtype
) -> dict[str, Any]:
    """All of the profile but what was timed."""
    name = device_name(device)
    kind = arithmetic(dtype)
    tokens = f"{share.tokens:,} tokens"
    label = f"measured on {name} with deepseek_mini, {kind}, {tokens}, without communication"
    if device.type == "cpu":
        cut = f" of {asked:,}" if share.tokens < asked else ""
        label = f"measured on a CPU, {share.tokens:,}{cut} tokens, {kind}: no evidence for a GPU"
    return {
        "format": 1,
        "name": f"{model} on {name}",
        "kind": "measured",
        "label": label,
        "device": name,
        "threads": torch.get_num_threads() if device.type == "cpu" else None,
        "precision": f"{kind} weights, activations and products; gate and softmax in FP32",
        "model": model,
        "tokens": share.tokens,
        "tokens_of_a_micro_batch": asked,
        "sequence_length": share.length,
        "expert_parallel": share.expert_parallel,
        "experts_here": share.n_local_experts,
        "rows_per_expert": share.counts,
        "versions": {
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "python": platform.python_version(),
        },
        "milliseconds": {},
        "spread_milliseconds": {},
        "overlapped_pair_milliseconds": None,
        "source": "scripts/benchmark.py layers: medians; spread is of whole passes, least and most",
    }
