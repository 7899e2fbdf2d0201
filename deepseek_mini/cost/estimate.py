"""What a run would take, before it starts: parameters, FLOPs, memory and time, for `check=true`.

Parameters and FLOPs are exact. Memory and time are estimates, and the text says what they assume.
"""

from dataclasses import dataclass, replace

import torch

from deepseek_mini.config import Attention, Config, ModelConfig, Recompute
from deepseek_mini.cost.flops import (
    count_active_parameters,
    count_parameters,
    flops_by_convention,
    flops_per_token,
    mtp_params,
    total_params,
)
from deepseek_mini.cost.hardware import (
    Peak,
    choose_device,
    choose_precision,
    device_name,
    matmul_peak,
    total_memory,
)
from deepseek_mini.model.transformer import build_on_meta
from deepseek_mini.optim.schedule import total_tokens

ASSUMED_MFU = {"cpu": 0.35, "cuda": 0.25}
"""CPU: of the order of this package's own runs. GPU: the median of published MoE runs on H100-class GPUs."""


def describe_run(config: Config) -> str:
    """What `check=true` prints: device, parameters by component, FLOPs per token, memory and time.

    Builds the real modules without memory and asserts that the counts are theirs. Raises ValueError where the
    device asked for is absent.
    """
    device, device_reason = choose_device(config.device)
    dtype, dtype_reason = choose_precision(device, config.precision.format)
    _assert_counts(config.model)
    lines = [
        f"device      {device_name(device)} ({device.type}: {device_reason})",
        f"precision   {_short(dtype)} ({dtype_reason})",
        "",
        *_parameter_lines(config.model),
        "",
        *_flops_lines(config),
        "",
        *_memory_lines(config, device, dtype),
        "",
        _time_line(config, device, matmul_peak(device, dtype)),
    ]
    return "\n".join(lines)


def estimate_memory(config: Config, device: torch.device, dtype: torch.dtype) -> dict[str, int]:
    """Bytes of one training step, by what holds them.

    Weights, gradients and AdamW's two moments are FP32 (Muon keeps one moment, so this is too much for it);
    BF16 adds a copy of the weights. Activations are what the backward pass needs, counted from the forward
    pass of `deepseek_mini.model` to within a fifth. Not counted: buffers that live for one operation, the
    allocator's slack, the data, and the interpreter with its libraries.
    """
    n_parameters = total_params(config.model) + mtp_params(config.model)
    memory = {
        "weights": 4 * n_parameters,
        "gradients": 4 * n_parameters,
        "optimizer moments": 8 * n_parameters,
        "activations": _activation_bytes(config, device, dtype),
    }
    if dtype is torch.bfloat16:
        memory["weights in BF16"] = 2 * n_parameters
    return memory


def estimate_seconds(config: Config, device: torch.device, peak: Peak) -> float | None:
    """Seconds of the optimizer steps of the whole run at the assumed MFU; None if the peak is not known."""
    if peak.flops_per_second is None:
        return None
    flops = total_tokens(config) * flops_per_token(config.model, config.data.sequence_length, mtp=True)
    return flops / (peak.flops_per_second * ASSUMED_MFU[device.type])


def _assert_counts(config: ModelConfig) -> None:
    sizes = {name: tensor.numel() for name, tensor in build_on_meta(config).state_dict().items()}
    mtp = sum(n for name, n in sizes.items() if name.startswith("mtp."))
    built = (sum(sizes.values()) - mtp, mtp)
    assert built == (total_params(config), mtp_params(config)), f"the built model has {built} parameters"


@dataclass(frozen=True, slots=True)
class _Widths:
    """Bytes per element of what the backward pass needs."""

    norm: int
    product: int
    attention: int
    cheap: int
    """1 where results of norms, MLA's up-projections and SwiGLU are kept, 0 where they are made again."""
    inner: int
    """Tensors as wide as a routed expert that its SwiGLU keeps."""


def _widths(device: torch.device, dtype: torch.dtype, recompute: Recompute) -> _Widths:
    """Norms and the gate are FP32; so is attention on a CPU, whose loop over experts keeps no product."""
    attention = 4 if device.type == "cpu" else dtype.itemsize
    v3 = recompute is Recompute.v3
    inner = 2 if v3 or device.type == "cpu" else 5
    return _Widths(norm=4, product=dtype.itemsize, attention=attention, cheap=0 if v3 else 1, inner=inner)


def _activation_bytes(config: Config, device: torch.device, dtype: torch.dtype) -> int:
    """Bytes kept from the forward to the backward pass of one micro-batch.

    Each head keeps the gradients of its input and weight, which it forms in the forward pass.
    """
    model, width = config.model, _widths(device, dtype, config.trainer.recompute)
    depth = model.mtp.depth
    sequences = config.trainer.micro_batch_size or config.data.batch_size
    tokens = sequences * config.data.sequence_length
    attention = _attention_bytes(model, width)
    dense, moe = attention + _dense_bytes(model, width), attention + _moe_bytes(model, width)
    outputs = (1 + depth) * (4 * model.vocab_size + tokens * (width.norm + width.product)) * model.dim
    mtp_inputs = depth * tokens * (4 * width.norm + 2 * width.cheap * width.product) * model.dim
    if config.trainer.recompute is Recompute.full:
        block_inputs = (model.n_layers + depth) * width.norm * model.dim
        return outputs + mtp_inputs + tokens * (block_inputs + max(dense, moe))
    n_moe = model.n_layers - model.n_dense_layers + depth
    return outputs + mtp_inputs + tokens * (model.n_dense_layers * dense + n_moe * moe)


def _attention_bytes(config: ModelConfig, width: _Widths) -> int:
    """Per token: the norm before, the latents with their norms, and queries, keys, values and output."""
    inputs = (width.norm + width.cheap * width.product) * config.dim
    output = width.product * config.n_heads * config.v_head_dim
    if config.attention is not Attention.mla:
        return inputs + output + width.attention * 4 * config.n_heads * config.v_head_dim
    latent = width.norm + width.product if width.cheap else width.product
    latents = latent * (config.q_lora_rank + config.kv_lora_rank) + width.norm * config.qk_rope_head_dim
    heads = width.cheap * (2 * config.qk_head_dim + config.v_head_dim) + config.v_head_dim
    return inputs + latents + width.attention * config.n_heads * heads + output


def _dense_bytes(config: ModelConfig, width: _Widths) -> int:
    """Per token: the norm before the MLP, and its inner activations."""
    inputs = (width.norm + width.cheap * width.product) * config.dim
    return inputs + (2 + 2 * width.cheap) * width.product * config.inter_dim


def _moe_bytes(config: ModelConfig, width: _Widths) -> int:
    """Per token: the norm, the gate, and of each expert it visits the input and the inner activations."""
    copies = width.product if width.product == width.norm else width.product + width.norm
    gate = width.norm * config.n_routed_experts
    routed = config.n_activated_experts * (config.dim + width.inner * config.moe_inter_dim)
    shared = (2 + 2 * width.cheap) * config.n_shared_experts * config.moe_inter_dim
    return (width.norm + width.cheap * copies) * config.dim + gate + width.product * (routed + shared)


def _parameter_lines(config: ModelConfig) -> list[str]:
    total, active = count_parameters(config), count_active_parameters(config)
    rows = [(name, total[name], active[name]) for name in total]
    rows.append(("total", sum(total.values()), sum(active.values())))
    lines = [f"{'parameters':<18}{'total':>20}{'active per token':>20}"]
    lines += [f"  {name:<16}{n:>20,}{n_active:>20,}" for name, n, n_active in rows]
    lines.append(f"  {'MTP, apart':<16}{mtp_params(config):>20,}")
    return lines


def _flops_lines(config: Config) -> list[str]:
    length = config.data.sequence_length
    flops = flops_by_convention(config.model, length)
    lines = [f"FLOPs per token of training, at {length} tokens (embedding out, head in)"]
    return lines + [f"  {name.replace('_', ' '):<24}{n / 1e9:>14,.3f} G" for name, n in flops.items()]


def _memory_lines(config: Config, device: torch.device, dtype: torch.dtype) -> list[str]:
    memory = estimate_memory(config, device, dtype)
    sequences = config.trainer.micro_batch_size or config.data.batch_size
    lines = [f"memory of a step, estimated ({sequences} x {config.data.sequence_length} tokens per pass)"]
    lines += [f"  {name:<24}{n / 2**30:>14,.2f} GiB" for name, n in memory.items()]
    lines.append(f"  {'sum':<24}{sum(memory.values()) / 2**30:>14,.2f} GiB")
    available = total_memory(device)
    if available is not None:
        lines.append(f"  {'this device has':<24}{available / 2**30:>14,.2f} GiB")
    for choice in (choice for choice in Recompute if choice is not config.trainer.recompute):
        other = replace(config, trainer=replace(config.trainer, recompute=choice))
        activations = estimate_memory(other, device, dtype)["activations"] / 2**30
        lines.append(f"  {activations:,.2f} GiB of activations with trainer.recompute={choice}")
    return lines


def _time_line(config: Config, device: torch.device, peak: Peak) -> str:
    tokens = total_tokens(config)
    seconds = estimate_seconds(config, device, peak)
    if seconds is None or peak.flops_per_second is None:
        return f"time        n/a for {tokens:,} tokens: no matmul peak ({peak.source})"
    return (
        f"time        about {_duration(seconds)} for {tokens:,} tokens, assuming an MFU of "
        f"{ASSUMED_MFU[device.type]:.0%}\n"
        f"            of {peak.flops_per_second / 1e12:,.3g} TFLOP/s ({peak.source});\n"
        "            start-up, evaluation and checkpoints come on top"
    )


def _duration(seconds: float) -> str:
    minute, hour, day, year = 60, 3600, 86400, 365.25 * 86400
    units = (
        (1.5 * minute, 1, "s"),
        (1.5 * hour, minute, "min"),
        (3 * day, hour, "h"),
        (2 * year, day, "days"),
    )
    for limit, unit, name in units:
        if seconds < limit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds / year:,.0f} years"


def _short(dtype: torch.dtype) -> str:
    return {torch.bfloat16: "bf16", torch.float32: "fp32"}[dtype]
