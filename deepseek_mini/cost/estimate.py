"""What a run would take, before it starts: parameters, FLOPs, memory and time, for `check=true`.

Parameters and FLOPs are exact. Memory and time are estimates, and the text says what they assume.
"""

from dataclasses import dataclass, replace

import torch

from deepseek_mini.config import (
    Attention,
    Backend,
    Config,
    Format,
    ModelConfig,
    Moments,
    PrecisionConfig,
    Recompute,
)
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
    product_dtype,
    total_memory,
)
from deepseek_mini.model.transformer import build_on_meta
from deepseek_mini.optim.schedule import total_tokens
from deepseek_mini.precision.backend import choose_backend, precision_words
from deepseek_mini.precision.convert import convert, short_list

FP8_BYTES = 1 + 4 / 128
"""Of a number kept in E4M3, with its share of the tile's factor."""
E5M6_BYTES = 1.5 + 4 / 128

ASSUMED_MFU = {"cpu": 0.35, "cuda": 0.25}
"""CPU: of the order of this package's own runs. GPU: the median of published MoE runs on H100-class GPUs."""


def describe_run(config: Config) -> str:
    """What `check=true` prints: device, parameters by component, FLOPs per token, memory and time.

    Builds the real modules without memory and asserts that the counts are theirs. Raises ValueError where the
    device asked for is absent.
    """
    device, device_reason = choose_device(config.device)
    fallbacks: list[str] = []
    config = replace(config, precision=choose_backend(config.precision, device, fallbacks.append))
    dtype, dtype_reason = choose_precision(device, config.precision.format)
    _assert_counts(config.model)
    lines = [
        f"device      {device_name(device)} ({device.type}: {device_reason})",
        f"precision   {precision_words(config.precision, dtype, dtype_reason)}",
        *fallbacks,
        *_converted_lines(config),
        "",
        *_parameter_lines(config.model),
        "",
        *_flops_lines(config),
        "",
        *_memory_lines(config, device, dtype),
        "",
        _time_line(config, device, matmul_peak(device, product_dtype(device, config.precision, dtype))),
    ]
    return "\n".join(lines)


def estimate_memory(config: Config, device: torch.device, dtype: torch.dtype) -> dict[str, int]:
    """Bytes of one training step, by what holds them.

    Weights and gradients are FP32, AdamW's two moments what `optimizer.moments` says (Muon keeps one moment,
    so this is too much for it). BF16 and FP8 add copies of the weights; FP8 by Transformer Engine is taken
    for BF16. Activations are what the backward pass needs, counted from the forward pass of
    `deepseek_mini.model` to within a fifth. Not counted: buffers that live for one operation, the allocator's
    slack, the data, and the interpreter with its libraries.
    """
    n_parameters = total_params(config.model) + mtp_params(config.model)
    n_converted = _n_converted(config.model) if _keeps_fp8(config.precision) else 0
    memory = {
        "weights": 4 * n_parameters,
        "gradients": 4 * n_parameters,
        "optimizer moments": (4 if config.optimizer.moments is Moments.bf16 else 8) * n_parameters,
        "activations": _activation_bytes(config, device, dtype),
    }
    if dtype is torch.bfloat16:
        memory["weights in BF16"] = 2 * (n_parameters - n_converted)
    if n_converted:
        copies = 4 if config.precision.backend is Backend.emulated else 2
        memory["weights in FP8"] = copies * n_converted
    return memory


def _keeps_fp8(precision: PrecisionConfig) -> bool:
    return precision.format is Format.fp8 and precision.backend is not Backend.te


def _n_converted(config: ModelConfig) -> int:
    """Weights of the layers that FP8 takes, with the few of attention's norms."""
    parts = ("attention", "dense", "shared_experts", "routed_experts")
    n_mtp = mtp_params(config) - config.mtp.depth * config.dim * (2 * config.dim + config.n_routed_experts)
    return sum(count_parameters(config)[part] for part in parts) + n_mtp


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
    fp8: bool = False
    """Linears keep copies of their inputs in FP8, also where these are made again."""

    @property
    def operand(self) -> float:
        """Of what a linear keeps of its input."""
        return FP8_BYTES if self.fp8 else self.cheap * self.product

    @property
    def attention_output(self) -> float:
        """Of what the linear after attention keeps."""
        return E5M6_BYTES if self.fp8 else self.product


def _widths(config: Config, device: torch.device, dtype: torch.dtype) -> _Widths:
    """Norms and the gate are FP32; so is attention on a CPU, whose loop over experts keeps no product."""
    attention = 4 if device.type == "cpu" else dtype.itemsize
    v3 = config.trainer.recompute is Recompute.v3
    return _Widths(
        norm=4,
        product=dtype.itemsize,
        attention=attention,
        cheap=0 if v3 else 1,
        inner=2 if v3 or device.type == "cpu" else 5,
        fp8=_keeps_fp8(config.precision),
    )


def _activation_bytes(config: Config, device: torch.device, dtype: torch.dtype) -> int:
    """Bytes kept from the forward to the backward pass of one micro-batch.

    Each head keeps the gradients of its input and weight, which it forms in the forward pass.
    """
    model, width = config.model, _widths(config, device, dtype)
    depth = model.mtp.depth
    sequences = config.trainer.micro_batch_size or config.data.batch_size
    tokens = sequences * config.data.sequence_length
    attention = _attention_bytes(model, width)
    dense, moe = attention + _dense_bytes(model, width), attention + _moe_bytes(model, width)
    outputs = (1 + depth) * (4 * model.vocab_size + tokens * (width.norm + width.product)) * model.dim
    mtp_inputs = depth * tokens * (4 * width.norm + 2 * width.cheap * width.product) * model.dim
    if config.trainer.recompute is Recompute.full:
        block_inputs = (model.n_layers + depth) * width.norm * model.dim
        return round(outputs + mtp_inputs + tokens * (block_inputs + max(dense, moe)))
    n_moe = model.n_layers - model.n_dense_layers + depth
    return round(outputs + mtp_inputs + tokens * (model.n_dense_layers * dense + n_moe * moe))


def _attention_bytes(config: ModelConfig, width: _Widths) -> float:
    """Per token: the norm before, the latents with their norms, and queries, keys, values and output."""
    inputs = (width.norm + width.operand) * config.dim
    output = width.attention_output * config.n_heads * config.v_head_dim
    if config.attention is not Attention.mla:
        return inputs + output + width.attention * 4 * config.n_heads * config.v_head_dim
    latent = width.norm + width.operand if width.cheap else width.product
    latents = latent * (config.q_lora_rank + config.kv_lora_rank) + width.norm * config.qk_rope_head_dim
    heads = width.cheap * (2 * config.qk_head_dim + config.v_head_dim) + config.v_head_dim
    return inputs + latents + width.attention * config.n_heads * heads + output


def _dense_bytes(config: ModelConfig, width: _Widths) -> float:
    """Per token: the norm before the MLP, and its inner activations."""
    return (width.norm + width.operand) * config.dim + _inner_bytes(width) * config.inter_dim


def _inner_bytes(width: _Widths) -> float:
    """Per inner number of an MLP: SwiGLU's inputs and factor, and what the last linear keeps."""
    return (2 + width.cheap) * width.product + width.operand


def _moe_bytes(config: ModelConfig, width: _Widths) -> float:
    """Per token: the norm, the gate, and of each expert it visits the input and the inner activations.

    In FP8 a token is kept once for its routed experts and once for the shared ones.
    """
    gate = width.norm * config.n_routed_experts
    shared = _inner_bytes(width) * config.n_shared_experts * config.moe_inter_dim
    if width.fp8:
        inputs = (1 + width.cheap) * width.norm + 2 * FP8_BYTES
        routed = config.n_activated_experts * 2 * FP8_BYTES * config.moe_inter_dim
        return inputs * config.dim + gate + shared + routed
    copies = width.product if width.product == width.norm else width.product + width.norm
    routed = config.n_activated_experts * (config.dim + width.inner * config.moe_inter_dim)
    return (width.norm + width.cheap * copies) * config.dim + gate + shared + width.product * routed


def _converted_lines(config: Config) -> list[str]:
    names = convert(build_on_meta(config.model), config.precision)
    return [f"in fp8: {short_list(names)}"] if names else []


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
    if config.precision.format is Format.fp8:
        other = replace(config, precision=PrecisionConfig())
        activations = estimate_memory(other, device, dtype)["activations"] / 2**30
        lines.append(f"  {activations:,.2f} GiB of activations with precision=auto")
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
