"""One MoE layer, forward and backward, against those of torchtitan and of transformers: same weights, same
input.

All layers are in this process, which keeps freed memory for all of them, and take turns. Before anything is
timed their outputs are compared with ours. The backward pass gives the gradients of the input and of all
parameters, from the layer's output; the balance loss that our layer computes is not propagated.

All gates are in FP32: autocast would round transformers' scores to BF16, in which many are equal, and it
would choose other experts. torchtitan computes its experts in BF16 whatever it is given. A CPU without BF16
instructions is slow at that, so there it is also timed with its experts in FP32.
"""

import functools
import importlib.metadata
import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.peers import peer_config, require_routing_of_peers
from benchmarks.precisions import precisions
from benchmarks.result import Result, compared
from benchmarks.timing import medians
from deepseek_mini.compose import ConfigError
from deepseek_mini.config import Config, Format, ModelConfig, ScoreFunction
from deepseek_mini.cost.hardware import choose_device, choose_precision, matmul_peak
from deepseek_mini.cost.shape import shape_of
from deepseek_mini.model.moe import MoE
from deepseek_mini.training.setup import keep_freed_memory

WEIGHT_STD = 0.02
TOLERANCE = 0.03
"""Largest root mean square difference between two layers' outputs, over that of ours: BF16 makes 0.01."""
TORCHTITAN = "0.3"

Layer = Callable[[Tensor], Tensor]


def moe_layer(config: Config, rounds: int, say: Callable[[str], None]) -> list[Result]:
    """Milliseconds of a forward and backward pass. Raises ConfigError for what the user can mend."""
    model = config.model
    if model.n_dense_layers == model.n_layers:
        raise ConfigError("moe_layer: the model has no MoE layer; lower model.n_dense_layers")
    if model.score_func is not ScoreFunction.sigmoid or not model.n_shared_experts:
        raise ConfigError("the peers have model.score_func=sigmoid and a shared expert only; set these")
    require_routing_of_peers(model)
    device, _ = choose_device(config.device)
    formats = precisions("moe_layer", config, device, say)
    keep_freed_memory()
    torch.manual_seed(config.seed)
    ours = MoE(model).to(device)
    for parameter in ours.parameters():
        nn.init.normal_(parameter, std=WEIGHT_STD)
    shape = (config.data.batch_size, config.data.sequence_length, model.dim)
    x_BTD = torch.randn(shape, device=device, requires_grad=True)
    results = []
    for precision in formats:
        autocast = torch.autocast(device.type, torch.bfloat16, enabled=precision is Format.bf16)
        peers = build_peers(ours, model, precision, say)
        _require_same_layer(ours, peers, x_BTD, autocast)
        passes = {name: _pass(layer, x_BTD, autocast) for name, layer in {"": ours, **peers}.items()}
        name = f"moe_layer_{precision}"
        seconds = medians(name, passes, rounds, device, say)
        tokens = x_BTD.shape[0] * x_BTD.shape[1]
        unit = f"ms, {tokens} tokens, forward and backward"
        results += [
            compared(name, 1e3 * seconds[""], 1e3 * seconds[peer], peer, unit, more_is_better=False)
            for peer in peers
        ]
        dtype, _ = choose_precision(device, precision)
        peak = matmul_peak(device, dtype)
        if peak.flops_per_second is not None:
            ideal = 1e3 * tokens * _flops_per_token(model) / peak.flops_per_second
            at_peak = f"its products at {peak.flops_per_second:.3g} FLOP/s ({peak.source})"
            results.append(compared(name, 1e3 * seconds[""], ideal, at_peak, unit, more_is_better=False))
    return results


def build_peers(
    ours: MoE, model: ModelConfig, precision: Format, say: Callable[[str], None]
) -> dict[str, nn.Module]:
    """The layers of the peers that are installed, with our weights."""
    peers: dict[str, nn.Module] = {}
    if importlib.util.find_spec("torchtitan") is None:
        say(f"torchtitan is left out: it is not installed (pip install 'torchtitan=={TORCHTITAN}.*')")
    else:
        title = f"torchtitan {importlib.metadata.version('torchtitan')} MoE"
        peers[f"{title}, experts in BF16 as it has them"] = torchtitan_layer(ours, model)
        if precision is Format.fp32:
            layer = torchtitan_layer(ours, model)
            compute_experts_in_own_precision(layer)
            peers[f"{title}, its experts' casts to BF16 taken out"] = layer
    if importlib.util.find_spec("transformers") is None:
        say("transformers is left out: it is not installed (pip install 'deepseek-mini[hf]')")
    else:
        title = f"transformers {importlib.metadata.version('transformers')} DeepseekV3MoE"
        for experts in ("eager", "grouped_mm"):
            peers[f"{title}, {experts} experts"] = transformers_layer(ours, model, experts)
    return peers


def transformers_layer(ours: MoE, model: ModelConfig, experts: str) -> nn.Module:
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE

    settings = peer_config(model)
    settings._experts_implementation = experts
    layer = DeepseekV3MoE(settings)
    weights = dict(ours.named_parameters())
    w1_EID, w2_EDI, w3_EID = (weights[f"experts.{name}"] for name in ("w1", "w2", "w3"))
    theirs = {
        "experts.gate_up_proj": torch.cat((w1_EID, w3_EID), dim=1),
        "experts.down_proj": w2_EDI,
        "gate.weight": weights["gate.weight"],
        "shared_experts.gate_proj.weight": weights["shared_experts.w1.weight"],
        "shared_experts.down_proj.weight": weights["shared_experts.w2.weight"],
        "shared_experts.up_proj.weight": weights["shared_experts.w3.weight"],
    }
    keep_out_of_autocast(layer.gate)
    return _with_weights(layer, theirs)


def torchtitan_layer(ours: MoE, model: ModelConfig) -> nn.Module:
    from torchtitan.models.common import config_utils as titan  # pyright: ignore[reportMissingImports]

    no_init: dict[str, Any] = {}
    width = model.n_shared_experts * model.moe_inter_dim
    router = titan.make_router_config(
        dim=model.dim,
        num_experts=model.n_routed_experts,
        gate_param_init=no_init,
        top_k=model.n_activated_experts,
        score_func="sigmoid",
        route_norm=True,
        route_scale=model.route_scale,
        num_expert_groups=model.n_expert_groups if model.n_expert_groups > 1 else None,
        num_limited_groups=model.n_limited_groups if model.n_expert_groups > 1 else None,
    )
    experts = titan.make_routed_experts_config(
        dim=model.dim,
        hidden_dim=model.moe_inter_dim,
        num_experts=model.n_routed_experts,
        top_k=model.n_activated_experts,
        param_init=no_init,
        comm_backend="standard",
    )
    shared = titan.make_ffn_config(
        dim=model.dim, hidden_dim=width, w1_param_init=no_init, w2w3_param_init=no_init
    )
    layer = titan.make_moe_config(
        num_experts=model.n_routed_experts, router=router, routed_experts=experts, shared_experts=shared
    ).build()
    weights = dict(ours.named_parameters())
    theirs = {
        "routed_experts.inner_experts.w1_EFD": weights["experts.w1"],
        "routed_experts.inner_experts.w2_EDF": weights["experts.w2"],
        "routed_experts.inner_experts.w3_EFD": weights["experts.w3"],
        "router.gate.weight": weights["gate.weight"],
        **{f"shared_experts.{n}.weight": weights[f"shared_experts.{n}.weight"] for n in ("w1", "w2", "w3")},
    }
    return _with_weights(layer, theirs)


def keep_out_of_autocast(module: nn.Module) -> None:
    """Make a module compute in its own precision under autocast too."""
    own_forward = module.forward

    def forward(x: Tensor) -> object:
        with torch.autocast(x.device.type, enabled=False):
            return own_forward(x)

    module.forward = forward


def compute_experts_in_own_precision(layer: nn.Module) -> None:
    """Make torchtitan's experts compute in the precision that they are given."""

    def forward(experts: Any, x_RD: Tensor, counts_E: Tensor) -> Tensor:
        ends_E = counts_E.cumsum(0).to(torch.int32)
        gate_RF = F.grouped_mm(x_RD, experts.w1_EFD.mT, offs=ends_E)
        up_RF = F.grouped_mm(x_RD, experts.w3_EFD.mT, offs=ends_E)
        return F.grouped_mm(F.silu(gate_RF) * up_RF, experts.w2_EDF.mT, offs=ends_E)

    experts: Any = layer.get_submodule("routed_experts.inner_experts")
    experts.forward = functools.partial(forward, experts)


def _with_weights(layer: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """The layer with these weights, which must be all that it has."""
    parameters = dict(layer.named_parameters())
    if set(parameters) != set(weights):
        unpaired = sorted(set(parameters) ^ set(weights))
        raise RuntimeError(f"parameters {unpaired} have no partner: not the same layer")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.data = weights[name].detach().clone()
        for buffer in layer.buffers():
            buffer.data = torch.zeros_like(buffer, device=next(iter(weights.values())).device)
    return layer.train()


def _require_same_layer(
    ours: MoE, peers: dict[str, nn.Module], x_BTD: Tensor, autocast: torch.autocast
) -> None:
    with torch.no_grad(), autocast:
        y_BTD = ours(x_BTD)[0].float()
        for name, layer in peers.items():
            error = ((layer(x_BTD) - y_BTD).square().mean() / y_BTD.square().mean()).sqrt().item()
            if error > TOLERANCE:
                raise RuntimeError(f"{name} differs from our layer by {error:.2%}: not the same layer")


def _pass(layer: nn.Module, x_BTD: Tensor, autocast: torch.autocast) -> Callable[[], object]:
    """Forward, and backward to the input and all parameters; weights are cast in each, as in each step."""
    d_y_BTD = torch.randn(x_BTD.shape, generator=torch.Generator().manual_seed(1)).to(x_BTD.device)
    inputs = [x_BTD, *layer.parameters()]

    def work() -> object:
        with autocast:
            y = layer(x_BTD)
        y_BTD = y[0] if isinstance(y, tuple) else y
        return torch.autograd.grad(y_BTD, inputs, d_y_BTD.to(y_BTD.dtype))

    return work


def _flops_per_token(model: ModelConfig) -> float:
    shape = shape_of(model)
    weights = shape.shared_weights + shape.top_k * shape.expert_weights + shape.n_experts * shape.dim
    return 6.0 * weights
