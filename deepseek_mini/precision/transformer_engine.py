"""Transformer Engine's FP8 products behind the parameters of `nn.Linear` and `RoutedExperts`.

    x --bf16--> zero rows up to a multiple of 16 --> te.Linear, te.GroupedLinear --bf16--> those rows dropped

Parameters are the float32 ones of the modules replaced, by the same names: checkpoints are interchangeable.
Transformer Engine quantises the weights straight from float32 in every pass, anew each time: a cache
(`is_first_microbatch`) would have to be refreshed after every update, and saves little. Products come out in
bfloat16, the gradients of weights too; these are added up in float32.

`te.autocast` surrounds a module's forward pass and nothing else, and the recipe keeps no state between
passes: backward runs outside of it, and `torch.utils.checkpoint` needs no counterpart of theirs.
What V3 stores in formats of its own (E5M6 after attention, SwiGLU's inputs) is stored here as elsewhere.

Written against release 2.20.2. No GPU has run it: what is known of it comes from its Python source.

Legend: N tokens, M their number in a flat batch, K inputs, S assignments in expert order, P these with every
expert's padded to a multiple of 16, E experts, D model width, I inner width.
"""

import functools
import importlib.metadata
import importlib.util
import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepseek_mini.model.dtype import compute_dtype
from deepseek_mini.model.experts import RoutedExperts
from deepseek_mini_kernels.backend import why_not_hopper
from deepseek_mini_kernels.formats import SMALLEST_AMAX, SMALLEST_GRADIENT, Scales

MULTIPLE = 16
"""What rows and features must be multiples of: cuBLAS's rule for block-scaled products (not 128)."""
OLDEST_RELEASE = (2, 20)
OLDEST_CUDA = (12, 9)


def why_not_te(device: torch.device) -> str | None:
    """Why Transformer Engine cannot multiply in blocks of 128 on this device, in a line; None if it can.

    It is imported, which takes seconds, only where everything else is in place.
    """
    if importlib.util.find_spec("transformer_engine") is None:
        return "Transformer Engine is not installed (docs/gpu.md tells how)"
    if device.type != "cuda":
        return f"Transformer Engine needs CUDA, and the device is {device.type}"
    if obstacle := why_not_hopper(device):
        return obstacle
    if torch.cuda.get_device_capability(device) >= (10, 0):
        return "Transformer Engine multiplies in blocks of 128 on Hopper only; on later GPUs it emulates them"
    if torch.version.cuda is None or _leading(torch.version.cuda) < OLDEST_CUDA:
        return f"Transformer Engine needs CUDA 12.9 for blocks of 128, and torch has {torch.version.cuda}"
    release = importlib.metadata.version("transformer_engine")
    if _leading(release) < OLDEST_RELEASE:
        return f"Transformer Engine must be 2.20 or later, and is {release}"
    return _why_not_import()


@functools.cache
def _why_not_import() -> str | None:
    try:
        with warnings.catch_warnings(action="ignore"):
            import transformer_engine.pytorch  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except Exception as error:
        first_line = (str(error).splitlines() or [""])[0]
        return f"Transformer Engine does not load: {type(error).__name__}: {first_line}"
    return None


def _leading(version: str) -> tuple[int, int]:
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


class TeLinear(nn.Module):
    """A linear layer without a bias, its three products in FP8, on the parameter of the one it replaces.

    Raises ValueError if Transformer Engine does not take its shape.
    """

    def __init__(self, linear: nn.Linear, scales: Scales) -> None:
        super().__init__()
        import transformer_engine.pytorch as te

        assert linear.bias is None
        require_multiples(linear.weight)
        n_outputs, n_inputs = linear.weight.shape
        self.weight = linear.weight
        kind = {"bias": False, "params_dtype": self.weight.dtype, "device": "meta"}
        self._product = _Product(te.Linear(n_inputs, n_outputs, **kind), scales)

    def forward(self, x: Tensor) -> Tensor:
        x_MK = x.flatten(0, -2).to(compute_dtype(x))
        n_rows = len(x_MK)
        if padding := -n_rows % MULTIPLE:
            x_MK = F.pad(x_MK, (0, 0, 0, padding))
        return self._product([self.weight], x_MK)[:n_rows].unflatten(0, x.shape[:-1])


class TeExperts(RoutedExperts):
    """Routed experts, their nine products in FP8, on the stacks of those they replace.

    The sizes of the groups visit the host. Raises ValueError if Transformer Engine does not take the shapes.
    """

    def __init__(self, experts: RoutedExperts, scales: Scales) -> None:
        nn.Module.__init__(self)
        import transformer_engine.pytorch as te

        self.w1, self.w2, self.w3 = experts.w1, experts.w2, experts.w3
        require_multiples(self.w1)
        n_experts, inter_dim, dim = self.w1.shape
        kind = {"bias": False, "params_dtype": self.w1.dtype, "device": "meta", "use_grouped_tensor": False}
        self._gate = _Product(te.GroupedLinear(n_experts, dim, inter_dim, **kind), scales)
        self._up = _Product(te.GroupedLinear(n_experts, dim, inter_dim, **kind), scales)
        self._down = _Product(te.GroupedLinear(n_experts, inter_dim, dim, **kind), scales)

    def compute(self, x_SD: Tensor, weights_S1: Tensor, counts_E: Tensor) -> Tensor:
        place_S, padded_E = _padded_places(counts_E, len(x_SD))
        sizes_E = padded_E.cpu()
        n_rows = int(sizes_E.sum())

        def pad(rows: Tensor) -> Tensor:
            return rows.new_zeros(n_rows, rows.shape[1]).index_copy(0, place_S, rows)

        x_PD = pad(x_SD)
        gate_PI = self._gate(self.w1.unbind(0), x_PD, sizes_E)
        up_PI = self._up(self.w3.unbind(0), x_PD, sizes_E)
        inner_PI = self.inner(gate_PI, up_PI, pad(weights_S1))
        return self._down(self.w2.unbind(0), inner_PI, sizes_E).index_select(0, place_S)


class _Product:
    """A module of Transformer Engine that owns nothing: its weights are lent to it for each pass.

    It is no part of the module tree, so names, checkpoints and optimizers know nothing of it.
    """

    def __init__(self, module: nn.Module, scales: Scales) -> None:
        self._names = [name for name, _ in module.named_parameters()]
        for name in self._names:
            delattr(module, name)
        self._module = module
        self._recipe = block_recipe(scales)

    def __call__(self, weights: Sequence[Tensor], *inputs: Tensor) -> Tensor:
        import transformer_engine.pytorch as te

        lent = self._module.__dict__
        lent.update(zip(self._names, weights, strict=True))
        try:
            with te.autocast(enabled=True, recipe=self._recipe):
                return self._module(*inputs)
        finally:
            for name in self._names:
                del lent[name]


@functools.cache
def block_recipe(scales: Scales) -> Any:
    """V3 section 3.3: E4M3, x and dy in 1x128, w in 128x128, sums promoted, our own floors of amax.

    The recipe's own way to float32 scales is a variable of the environment, read at the first import, and its
    own floor of amax is 0. Both are attributes of its class that an instance may shadow.
    """
    from transformer_engine.common.recipe import Float8BlockScaling, Format, MMParams, QParams

    promoted = MMParams(use_split_accumulator=True)
    recipe = Float8BlockScaling(
        use_f32_scales=scales == "fp32",
        fp8_format=Format.E4M3,
        x_block_scaling_dim=1,
        w_block_scaling_dim=2,
        grad_block_scaling_dim=1,
        fp8_gemm_fprop=promoted,
        fp8_gemm_dgrad=promoted,
        fp8_gemm_wgrad=promoted,
        backward_override=None,
    )
    forward, backward = (
        QParams(power_2_scale=scales == "pow2", amax_epsilon=smallest)
        for smallest in (SMALLEST_AMAX, SMALLEST_GRADIENT)
    )
    recipe.fp8_quant_fwd_inp = recipe.fp8_quant_fwd_weight = forward
    recipe.fp8_quant_bwd_grad = backward
    return recipe


def require_multiples(weight: Tensor) -> None:
    """Raises ValueError unless both features of a weight, or of a stack of weights, are multiples of 16."""
    n_outputs, n_inputs = weight.shape[-2:]
    if n_outputs % MULTIPLE or n_inputs % MULTIPLE:
        raise ValueError(
            f"precision.backend=te: Transformer Engine needs multiples of {MULTIPLE}, and a weight is "
            f"{n_outputs} x {n_inputs}; change the model or set precision.backend=triton"
        )


def _padded_places(counts_E: Tensor, n_rows: int) -> tuple[Tensor, Tensor]:
    """Each row's place once every expert's rows are followed by padding, and the padded counts."""
    padded_E = (counts_E + (MULTIPLE - 1)) // MULTIPLE * MULTIPLE
    padding_E = padded_E - counts_E
    before_E = padding_E.cumsum(0) - padding_E
    shift_S = before_E.repeat_interleave(counts_E, output_size=n_rows)
    return torch.arange(n_rows, device=counts_E.device) + shift_S, padded_E
