"""Turn a finished model into one that computes in FP8 where DeepSeek-V3 does (section 3.3.1).

In FP8: the projections of attention, and the linears of dense layers, shared and routed experts, MTP's block
among them. In high precision: embedding, output head, gate, norms and the attention operator, as the report
has it; and MTP's eh_proj, of which it says nothing: DeepSeek's FP8 release holds that in BF16.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

from torch import nn

from deepseek_mini.config import Backend, Format, PrecisionConfig
from deepseek_mini.model.attention import SelfAttention
from deepseek_mini.model.experts import Mlp, RoutedExperts
from deepseek_mini.precision.arithmetic import build_arithmetic
from deepseek_mini.precision.experts import Fp8Experts
from deepseek_mini.precision.linear import AttentionOutput, Fp8Linear

ATTENTION_OUTPUT = "wo"


class Replacements(NamedTuple):
    """What a backend puts in the place of modules; all take over the parameters."""

    linear: Callable[[nn.Linear], nn.Module]
    attention_output: Callable[[nn.Linear], nn.Module]
    experts: Callable[[RoutedExperts], nn.Module]


def convert(model: nn.Module, precision: PrecisionConfig) -> list[str]:
    """Replace the modules that the paper computes in FP8; their names. Nothing to do for other formats.

    Parameters stay the same objects under the same names, in float32: optimizers and checkpoints do not see a
    difference. `precision.backend` must be one that runs (`choose_backend`).
    """
    if precision.format is not Format.fp8:
        return []
    replace = _replacements(precision)
    converted = []
    for name, module in list(model.named_modules()):
        if isinstance(module, RoutedExperts):
            model.set_submodule(name, replace.experts(module))
            converted.append(name)
        elif isinstance(module, SelfAttention | Mlp):
            for child_name, child in list(module.named_children()):
                if isinstance(child, nn.Linear):
                    build = replace.attention_output if child_name == ATTENTION_OUTPUT else replace.linear
                    setattr(module, child_name, build(child))
                    converted.append(f"{name}.{child_name}")
    return converted


def _replacements(precision: PrecisionConfig) -> Replacements:
    if precision.backend is Backend.te:
        from deepseek_mini.precision.transformer_engine import TeExperts, TeLinear

        def linear(module: nn.Linear) -> nn.Module:
            return TeLinear(module, precision.scales.value)

        def experts(module: RoutedExperts) -> nn.Module:
            return TeExperts(module, precision.scales.value)

        return Replacements(linear, linear, experts)
    arithmetic = build_arithmetic(precision)
    return Replacements(
        lambda module: Fp8Linear(module, arithmetic),
        lambda module: AttentionOutput(module, arithmetic),
        lambda module: Fp8Experts(module, arithmetic),
    )


@contextmanager
def holding_weights(model: nn.Module) -> Iterator[None]:
    """Within, no parameter changes: each is quantised once. A model without FP8 does not mind."""
    arithmetics = {m.arithmetic for m in model.modules() if isinstance(m, Fp8Linear | Fp8Experts)}
    with ExitStack() as stack:
        for arithmetic in arithmetics:
            stack.enter_context(arithmetic.holding_weights())
        yield


def short_list(names: list[str]) -> str:
    """Module names with numbers as ranges and the last parts in braces, as in layers.0-5.attn.{wq_a,wo}."""
    numbers: dict[str, list[list[int]]] = {}
    for name in names:
        found = [int(number) for number in re.findall(r"\.(\d+)\.", name)]
        numbers.setdefault(re.sub(r"\.\d+\.", ".#.", name), []).append(found)
    leaves: dict[str, list[str]] = {}
    for pattern, rows in numbers.items():
        for values in zip(*rows, strict=True):
            low, high = min(values), max(values)
            pattern = pattern.replace("#", str(low) if low == high else f"{low}-{high}", 1)
        parent, _, leaf = pattern.rpartition(".")
        leaves.setdefault(parent, []).append(leaf)
    return ", ".join(
        f"{parent}.{{{','.join(own)}}}" if len(own) > 1 else f"{parent}.{own[0]}"
        for parent, own in leaves.items()
    )
