"""What Transformer Engine's Python does with our adapter, without its C++ and without a GPU; one JSON object.

    python tests/transformer_engine_facts.py

Run in a process of its own. The modules, the recipe and the autocast state are the release's; stubbed are the
compiled extension, what answers for a GPU, and the forward passes, which call plain torch products instead
after their arguments have been bound to the real signatures.
"""

import copy
import enum
import importlib.machinery
import inspect
import json
import os
import sys
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock, patch

import torch
from torch import Tensor, nn

from deepseek_mini.config import ModelConfig
from deepseek_mini.model.experts import RoutedExperts
from deepseek_mini.precision.transformer_engine import TeExperts, TeLinear

TENSORS = [f"GEMM{i}_{name}" for i in (1, 2, 3) for name in ("INPUT", "WEIGHT", "OUTPUT")]
GRADIENTS = [f"GRAD_{name}{i}" for i in (1, 2, 3) for name in ("OUTPUT", "INPUT")]
NUMBERS = ("Byte", "Int32", "Float32", "Float16", "BFloat16", "Float8E4M3", "Float8E5M2", "Float4E2M1")
ENUMS = {
    "DType": [f"k{number}" for number in NUMBERS],
    "FP8FwdTensors": TENSORS,
    "FP8BwdTensors": GRADIENTS,
    "NVTE_Fused_Attn_Backend": ["NVTE_No_Backend", "NVTE_F16_arbitrary_seqlen", "NVTE_FP8"],
}
"""The enumerations of the extension whose members the release's Python checks when it is imported."""
GROUPS = ([70, 0, 1, 129], [0, 0, 3], [16, 32, 0, 48], [5], [1] * 9, [0, 17, 0])
ROWS = ([1], [2, 3], [16], [2, 2, 17])


def stub() -> None:
    """Put stand-ins for the compiled extension, and for packages that only exports need, into sys.modules."""
    os.environ["NVTE_PROJECT_BUILDING"] = "1"  # Transformer Engine's own switch: load no CUDA library
    for name in ("transformer_engine_torch", "onnx", "onnxscript"):
        module = MagicMock(name=name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
        module.__path__ = []
        sys.modules[name] = module
    for name, members in ENUMS.items():
        setattr(sys.modules["transformer_engine_torch"], name, enum.IntEnum(name, members, start=0))
    with warnings.catch_warnings(action="ignore"):
        import transformer_engine.common
    transformer_engine.common.load_framework_extension = lambda framework: None


@dataclass
class Seen:
    """What the forward passes of Transformer Engine were called with."""

    inputs: list[Tensor] = field(default_factory=list)
    splits: list[Tensor] = field(default_factory=list)
    in_autocast: list[bool] = field(default_factory=list)
    in_autocast_backward: list[bool] = field(default_factory=list)
    caches: list[Any] = field(default_factory=list)
    quantizers: list[dict[str, Any]] = field(default_factory=list)


def watched(kind: Any, seen: Seen, product: Callable) -> Callable:
    """A forward pass with the signature of `kind`'s, noting what it sees."""
    from transformer_engine.pytorch.quantization import FP8GlobalStateManager as State

    signature = inspect.signature(kind.forward)

    def forward(self, *args, **kwargs):
        arguments = signature.bind(self, *args, **kwargs)
        arguments.apply_defaults()
        values = arguments.arguments
        self.init_fp8_metadata(num_gemms=getattr(self, "num_gemms", 1))
        seen.inputs.append(values["inp"].detach())
        seen.splits += [values["m_splits"]] if "m_splits" in values else []
        seen.caches.append(values["is_first_microbatch"])
        seen.in_autocast.append(State.is_fp8_enabled())
        seen.quantizers.append({way: [vars(q) for q in self.quantizers[way]] for way in self.quantizers})
        y = product(values["inp"], self._get_weight_tensors(), values.get("m_splits"))
        if y.requires_grad:
            y.register_hook(lambda _: seen.in_autocast_backward.append(State.is_fp8_enabled()))
        return y

    return forward


def plain_product(x: Tensor, weights: list[Tensor], _: None) -> Tensor:
    return x @ weights[0].T


def plain_grouped_product(x: Tensor, weights: list[Tensor], sizes: Tensor) -> Tensor:
    return torch.cat([rows @ w.T for rows, w in zip(x.split(sizes.tolist()), weights, strict=True)])


def experts_of(n_experts: int, dim: int = 32, inter_dim: int = 48) -> RoutedExperts:
    config = ModelConfig(
        n_routed_experts=n_experts,
        dim=dim,
        moe_inter_dim=inter_dim,
        n_expert_groups=1,
        n_limited_groups=1,
        n_activated_experts=1,
    )
    experts = RoutedExperts(config)
    for stack in experts.parameters():
        nn.init.normal_(stack, std=0.2)
    return experts


def errors(ours: nn.Module, wanted: nn.Module, *inputs: Tensor) -> dict[str, float]:
    """Largest differences of result, input gradients and weight gradients, relative to the largest value."""
    results = []
    for module in (ours, wanted):
        module.zero_grad()
        leaves = [x.clone().requires_grad_(x.is_floating_point()) for x in inputs]
        y = module(*leaves)
        weight = torch.linspace(-1, 1, y.numel()).view(y.shape)
        (y * weight).sum().backward()
        named = {f"input {i}": x.grad for i, x in enumerate(leaves)}
        named |= {name: parameter.grad.clone() for name, parameter in module.named_parameters()}
        results.append({"result": y.detach(), **named})
    mine, theirs = results
    return {
        name: ((mine[name] - value).abs().max() / value.abs().max().clamp(min=1e-30)).item()
        for name, value in theirs.items()
        if value is not None
    }


def linear_facts(seen: Seen) -> dict[str, Any]:
    torch.manual_seed(0)
    linear = nn.Linear(32, 48, bias=False)
    ours = TeLinear(linear, "fp32")
    facts = {
        "own_parameters": ours.weight is linear.weight and list(ours.state_dict()) == ["weight"],
        "modules": len(list(ours.modules())),
        "errors": [errors(ours, linear, torch.randn(*rows, 32)) for rows in ROWS],
        "rows": [len(x) for x in seen.inputs],
    }
    facts["copies"] = torch.equal(copy.deepcopy(ours).weight, linear.weight)
    return facts


def experts_facts(seen: Seen) -> dict[str, Any]:
    torch.manual_seed(0)
    facts = {"errors": [], "splits": [], "padding_is_zero": []}
    for counts in GROUPS:
        experts = experts_of(len(counts))
        ours = TeExperts(experts, "fp32")
        facts["own_parameters"] = all(getattr(ours, n) is p for n, p in experts.named_parameters())
        facts["names"] = list(ours.state_dict())
        facts["modules"] = len(list(ours.modules()))
        experts_N1 = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))[:, None]
        experts_N1 = experts_N1[torch.randperm(len(experts_N1))]
        weights_N1 = torch.rand(len(experts_N1), 1)
        seen.inputs.clear()
        seen.splits.clear()
        x_ND = torch.randn(len(experts_N1), 32)
        facts["errors"].append(errors(ours, experts, x_ND, weights_N1, experts_N1))
        facts["splits"].append([split.tolist() for split in seen.splits])
        facts["padding_is_zero"].append([is_padded_with_zeros(x, counts) for x in seen.inputs])
        facts["split_kinds"] = sorted({f"{split.dtype} {split.device}" for split in seen.splits})
    return facts


def is_padded_with_zeros(x: Tensor, counts: list[int]) -> bool:
    sizes = [-(-count // 16) * 16 for count in counts]
    return all(not rows[count:].any() for rows, count in zip(x.split(sizes), counts, strict=True))


def meta_facts() -> dict[str, Any]:
    with torch.device("meta"):
        linear = TeLinear(nn.Linear(32, 48, bias=False), "pow2")
        experts = TeExperts(experts_of(3), "pow2")
    return {
        kind: {name: [list(p.shape), str(p.device)] for name, p in module.named_parameters()}
        for kind, module in (("linear", linear), ("experts", experts))
    }


def rule_facts() -> dict[str, Any]:
    """The rules of Transformer Engine that ours follow."""
    from transformer_engine.pytorch.quantization import get_align_size_for_quantization
    from transformer_engine.pytorch.utils import assert_dim_for_fp8_exec

    from deepseek_mini.precision.transformer_engine import MULTIPLE, block_recipe

    def is_taken(*shape: int) -> bool:
        try:
            assert_dim_for_fp8_exec(torch.empty(shape, device="meta"))
        except ValueError:
            return False
        return True

    return {
        "multiple": MULTIPLE,
        "group_multiple": get_align_size_for_quantization(block_recipe("fp32")),
        "takes": {str(shape): is_taken(*shape) for shape in ((16, 32), (5, 32), (16, 40))},
    }


def recipe_facts(scales: str, seen: Seen) -> dict[str, Any]:
    """The recipe's fields, and the quantisers that it gives a linear."""
    from deepseek_mini.precision.transformer_engine import block_recipe

    seen.quantizers.clear()
    linear = TeLinear(nn.Linear(32, 48, bias=False), scales)
    linear(torch.randn(16, 32))
    (quantizers,) = seen.quantizers
    keys = ("block_scaling_dim", "force_pow_2_scales", "amax_epsilon")
    recipe = block_recipe(scales)
    return {
        "format": recipe.fp8_format.name,
        "promoted": [getattr(recipe, f"fp8_gemm_{way}").use_split_accumulator for way in WAYS],
        "fp8_attention": recipe.fp8_dpa or recipe.fp8_mha,
        "backward_override": recipe.backward_override,
        "quantizers": {
            way: [[q["dtype"].name, *(q[key] for key in keys)] for q in found]
            for way, found in quantizers.items()
        },
    }


def benchmark_facts() -> dict[str, Any]:
    """The quantiser that the benchmark of the kernels times, and whether it may be called with a tensor."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
    from benchmarks import kernel_cases

    with patch.object(kernel_cases, "why_not_te", return_value=None):
        call = kernel_cases.te_quantizer(torch.zeros(2, 128), both_ways=True, block_dimensions=2)
    assert call is not None
    inspect.signature(call.func).bind(*call.args)
    names = ("rowwise_usage", "columnwise_usage", "block_scaling_dim", "force_pow_2_scales", "amax_epsilon")
    return {"dtype": call.func.dtype.name} | {name: getattr(call.func, name) for name in names}


WAYS = ("fprop", "dgrad", "wgrad")


def main() -> None:
    stub()
    import transformer_engine
    import transformer_engine.pytorch as te
    from transformer_engine.pytorch import quantization

    linears, grouped = Seen(), Seen()
    with ExitStack() as patches:
        patches.enter_context(patch.object(torch.cuda, "is_available", return_value=True))
        for answer in ("_FP8_SUPPORT", "_FP8_BLOCK_SCALING_SUPPORT"):
            patches.enter_context(patch.object(quantization, answer, (True, "")))
        for kind, seen, product in (
            (te.Linear, linears, plain_product),
            (te.GroupedLinear, grouped, plain_grouped_product),
        ):
            patches.enter_context(patch.object(kind, "forward", watched(kind, seen, product)))
        facts = {
            "release": transformer_engine.__version__,
            "linear": linear_facts(linears),
            "experts": experts_facts(grouped),
            "meta": meta_facts(),
            "rules": rule_facts(),
            "benchmark": benchmark_facts(),
            "recipes": {scales: recipe_facts(scales, linears) for scales in ("fp32", "pow2")},
        }
        both = (linears, grouped)
        facts["in_autocast"] = {
            "forward": sorted({inside for seen in both for inside in seen.in_autocast}),
            "backward": sorted({inside for seen in both for inside in seen.in_autocast_backward}),
            "after": quantization.FP8GlobalStateManager.is_fp8_enabled(),
        }
        facts["cached"] = [cache for seen in both for cache in seen.caches if cache is not None]
    sys.stdout.write(json.dumps(facts))


if __name__ == "__main__":
    main()
