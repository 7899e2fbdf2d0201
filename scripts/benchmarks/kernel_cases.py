"""What is timed of the FP8 kernels: the shapes of V3 in the table of floors, then the other configurations.

Peers get their inputs in the layout that suits them. torch's block-scaled product is cuBLAS's, as Transformer
Engine's is; of the latter the quantisers are timed. Tokens are spread evenly over the experts.

Legend: M tokens or rows, N outputs, K inputs, S rows of experts, E experts, I inner width, Y = ceil(K / 128),
X = ceil(N / 128), P, Z = rows of all experts, each padded to a multiple of 128, and their number of tiles.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.functional import ScalingType

from deepseek_mini.precision.transformer_engine import why_not_te
from deepseek_mini_kernels import roofline
from deepseek_mini_kernels.formats import E4M3, SMALLEST_AMAX
from deepseek_mini_kernels.grouped_matmul import grouped_matmul, grouped_wgrad
from deepseek_mini_kernels.matmul import block_scaled_matmul
from deepseek_mini_kernels.quantize import (
    quantize_activation,
    quantize_columns,
    quantize_rows_and_columns,
    quantize_weight,
    quantize_weight_and_transpose,
    requantize_columns,
)
from deepseek_mini_kernels.roofline import Work
from deepseek_mini_kernels.router import Rule, route
from deepseek_mini_kernels.swiglu import swiglu_quantize, swiglu_quantize_columns

PRODUCT_TOLERANCE = 1e-3
"""Largest error of a product over the sum of its addends' magnitudes: tensor cores keep 14 bits."""
BF16_ROUNDING = 2.0**-8
ROUTE_TOLERANCE = 1e-5
V3_RULE = Rule(n_activated=8, n_groups=8, n_limited_groups=4, route_scale=2.5)

NAIVE = "the plain reference"
SCALED_MM = f"torch {torch.__version__} scaled_mm, same tiles and blocks"
BF16_MM = f"torch {torch.__version__} mm, BF16"
BF16_GROUPED_MM = f"torch {torch.__version__} grouped_mm, BF16"
TE_QUANTIZER = "Transformer Engine's quantizer"


@dataclass(frozen=True, slots=True)
class Contest:
    """A kernel with its inputs, and who else does the same."""

    run: Callable[..., Any]
    """Takes `backend`."""
    differ: Callable[[Any, Any], str | None]
    """How the kernel's result and the reference's differ; None if they agree."""
    peers: Mapping[str, Callable[[], object] | None] = field(default_factory=dict)


class Draw:
    """Inputs on a device, the same in every run."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._generator = torch.Generator(device).manual_seed(0)

    def normal(self, *shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.empty(shape, device=self.device, dtype=dtype).normal_(generator=self._generator)

    def even_counts(self, s: int, e: int) -> Tensor:
        assert s % e == 0
        return torch.full((e,), s // e, device=self.device)


@dataclass(frozen=True, slots=True)
class Case:
    """A kernel in a shape; its inputs are drawn when its turn comes."""

    work: Work
    build: Callable[[Draw], Contest]


def rows(m: int, k: int) -> Case:
    def build(draw: Draw) -> Contest:
        x_MK = draw.normal(m, k)
        return Contest(partial(quantize_activation, x_MK), bits, {TE_QUANTIZER: te_quantizer(x_MK)})

    return Case(roofline.quantize_rows(m, k), build)


def columns(m: int, k: int) -> Case:
    return Case(
        roofline.quantize_columns(m, k),
        lambda draw: Contest(partial(quantize_columns, draw.normal(m, k)), bits),
    )


def rows_and_columns(m: int, k: int) -> Case:
    def build(draw: Draw) -> Contest:
        x_MK = draw.normal(m, k)
        peers = {TE_QUANTIZER: te_quantizer(x_MK, both_ways=True)}
        return Contest(partial(quantize_rows_and_columns, x_MK), bits, peers)

    return Case(roofline.quantize_both(m, k), build)


def stored_columns(m: int, k: int) -> Case:
    return Case(
        roofline.requantize(m, k),
        lambda draw: Contest(partial(requantize_columns, *quantize_activation(draw.normal(m, k))), bits),
    )


def weight(n: int, k: int, transpose: bool = True) -> Case:
    def build(draw: Draw) -> Contest:
        w_NK = draw.normal(n, k, dtype=torch.float32)
        op = quantize_weight_and_transpose if transpose else quantize_weight
        peers = {TE_QUANTIZER: te_quantizer(w_NK, both_ways=transpose, block_dimensions=2)}
        return Contest(partial(op, w_NK), bits, peers)

    return Case(roofline.quantize_weight(n, k, transpose), build)


def product(m: int, n: int, k: int, tiles: bool = False) -> Case:
    """`tiles` as in Wgrad: b in 1x128 tiles, a float32 result."""

    def build(draw: Draw) -> Contest:
        a_MK, b_NK = draw.normal(m, k), draw.normal(n, k)
        dtype = torch.float32 if tiles else torch.bfloat16
        a, b = quantize_activation(a_MK), (quantize_activation if tiles else quantize_weight)(b_NK)
        return Contest(
            partial(block_scaled_matmul, *a, *b, dtype=dtype),
            products(lambda: block_scaled_matmul(size(a[0]), a[1], size(b[0]), b[1], backend="naive")),
            {SCALED_MM: scaled_mm(a, b, dtype), BF16_MM: lambda: a_MK @ b_NK.T},
        )

    return Case(roofline.matmul(m, n, k, tiles), build)


def expert_product(s: int, e: int, n: int, k: int) -> Case:
    def build(draw: Draw) -> Contest:
        a_SK, b_ENK, counts_E = draw.normal(s, k), draw.normal(e, n, k), draw.even_counts(s, e)
        a, b = quantize_activation(a_SK), quantize_weight(b_ENK)
        ends_E = counts_E.cumsum(0).to(torch.int32)
        magnitude = partial(grouped_matmul, size(a[0]), a[1], size(b[0]), b[1], counts_E, backend="naive")
        return Contest(
            partial(grouped_matmul, *a, *b, counts_E, dtype=torch.bfloat16),
            products(magnitude),
            {BF16_GROUPED_MM: lambda: F.grouped_mm(a_SK, b_ENK.mT, offs=ends_E)},
        )

    return Case(roofline.grouped(s, e, n, k), build)


def expert_wgrad(s: int, e: int, n: int, k: int) -> Case:
    def build(draw: Draw) -> Contest:
        a_SN, b_SK, counts_E = draw.normal(s, n), draw.normal(s, k), draw.even_counts(s, e)
        a, b = quantize_columns(a_SN, counts_E), quantize_columns(b_SK, counts_E)
        ends_E = counts_E.cumsum(0).to(torch.int32)
        magnitude = partial(grouped_wgrad, size(a[0]), a[1], size(b[0]), b[1], counts_E, backend="naive")
        return Contest(
            partial(grouped_wgrad, *a, *b, counts_E),
            products(magnitude),
            {BF16_GROUPED_MM: lambda: F.grouped_mm(a_SN.T, b_SK, offs=ends_E)},
        )

    return Case(roofline.wgrad(s, e, n, k), build)


def swiglu(s: int, i: int) -> Case:
    def build(draw: Draw) -> Contest:
        inputs = draw.normal(s, i), draw.normal(s, i), draw.normal(s, dtype=torch.float32)
        run = partial(swiglu_quantize, *inputs)
        return Contest(run, codes, {NAIVE: partial(run, backend="naive")})

    return Case(roofline.swiglu(s, i), build)


def swiglu_columns(s: int, i: int, e: int = 32) -> Case:
    def build(draw: Draw) -> Contest:
        inputs = draw.normal(s, i), draw.normal(s, i), draw.normal(s, dtype=torch.float32)
        run = partial(swiglu_quantize_columns, *inputs, draw.even_counts(s, e))
        return Contest(run, codes, {NAIVE: partial(run, backend="naive")})

    return Case(roofline.swiglu_columns(s, i), build)


def router(m: int, e: int, k: int = V3_RULE.n_activated) -> Case:
    def build(draw: Draw) -> Contest:
        logits_ME, bias_E = (draw.normal(*shape, dtype=torch.float32) for shape in ((m, e), (e,)))
        run = partial(route, logits_ME, 0.01 * bias_E, V3_RULE)
        return Contest(run, routes, {NAIVE: partial(run, backend="naive")})

    return Case(roofline.route(m, e, k), build)


OF_V3 = (
    rows(8192, 7168),
    rows_and_columns(8192, 7168),
    stored_columns(8192, 7168),
    weight(7168, 16384),
    product(8192, 24576, 1536),
    product(8192, 7168, 16384),
    product(7168, 16384, 8192, tiles=True),
    expert_product(65536, 32, 2048, 7168),
    expert_product(65536, 32, 7168, 2048),
    expert_wgrad(65536, 32, 2048, 7168),
    swiglu(65536, 2048),
    swiglu_columns(65536, 2048),
    router(8192, 256),
)
OTHERS = (
    columns(8192, 7168),
    weight(7168, 16384, transpose=False),
    product(64, 24576, 1536),
    product(8192, 7168, 576),
    product(64, 7168, 576),
    product(8192, 7168, 1000),
    product(64, 7168, 8192, tiles=True),
    product(7168, 2048, 8208, tiles=True),
    product(64, 7168, 8208, tiles=True),
    product(64, 7168, 1000, tiles=True),
    expert_product(2048, 32, 2048, 7168),
    expert_product(65536, 32, 7168, 2000),
    expert_product(2048, 32, 7168, 2000),
    expert_product(2048, 32, 2000, 1000),
    expert_wgrad(65536, 32, 64, 7168),
    expert_wgrad(65536, 32, 1000, 7168),
)
"""Few rows; inner widths that are multiples of 16 but not of 128, as the 576 of wkv_a; and any others."""
CASES = OF_V3 + OTHERS


def scaled_mm(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], dtype: torch.dtype) -> Callable[[], object]:
    """torch's block-scaled product: factors column by column, those of blocks padded to multiples of 4."""
    (a_MK, a_scale_MY), (b_NK, b_scale) = a, b
    has_tiles = len(b_scale) == len(b_NK)
    b_scale = b_scale.T.contiguous().T if has_tiles else F.pad(b_scale, (0, -b_scale.shape[1] % 4)).T
    return partial(
        F.scaled_mm,
        a_MK,
        b_NK.T,
        scale_a=a_scale_MY.T.contiguous().T,
        scale_recipe_a=ScalingType.BlockWise1x128,
        scale_b=b_scale,
        scale_recipe_b=ScalingType.BlockWise1x128 if has_tiles else ScalingType.BlockWise128x128,
        output_dtype=dtype,
    )


def te_quantizer(
    x: Tensor, both_ways: bool = False, block_dimensions: int = 1
) -> Callable[[], object] | None:
    """Transformer Engine's quantiser of `x` by rows, or by rows and columns; None where it is missing."""
    if why_not_te(x.device):
        return None
    import transformer_engine.pytorch as te

    quantizer = te.Float8BlockQuantizer(
        te.DType.kFloat8E4M3,
        rowwise=True,
        columnwise=both_ways,
        amax_epsilon=SMALLEST_AMAX,
        force_pow_2_scales=False,
        block_scaling_dim=block_dimensions,
    )
    return partial(quantizer, x)


def bits(ours: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> str | None:
    """Equal to the last bit."""
    for mine, other in zip(ours, wanted, strict=True):
        if n_others := int((as_bytes(mine) != as_bytes(other)).sum()):
            return f"{n_others} of {mine.nbytes} bytes"
    return None


def codes(ours: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor]) -> str | None:
    """Exponentials differ in their last bits: a code of a few values, and 2^-20 of a factor."""
    steps = (as_bytes(ours[0]).int() - as_bytes(wanted[0]).int()).abs()
    if steps.max() > 1 or steps.float().mean() > 1e-3:
        return f"by up to {steps.max()} codes, {steps.float().mean():.2e} on average"
    are_close = (ours[1] - wanted[1]).abs() <= wanted[1] * 2**-20
    return None if are_close.all() else "factors"


def products(magnitude: Callable[[], Tensor]) -> Callable[[Tensor, Tensor], str | None]:
    """Within the tolerance of the sum of the addends' magnitudes, and the rounding of the result."""

    def differ(ours: Tensor, wanted: Tensor) -> str | None:
        rounding = BF16_ROUNDING * wanted.float().abs() if ours.dtype == torch.bfloat16 else 0
        error = (ours.float() - wanted.float()).abs() - rounding
        worst = (error / magnitude().clamp(min=1e-30)).max().item()
        return None if worst < PRODUCT_TOLERANCE else f"by {worst:.1e} of the addends' magnitudes"

    return differ


def routes(ours: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> str | None:
    """Experts may change places where scores differ in their last bits only."""
    for name, mine, other in zip(("weights", "experts", "scores"), ours, wanted, strict=True):
        if name == "experts":
            if (share := (mine != other).float().mean().item()) > 1e-3:
                return f"{share:.1e} of the experts"
        elif (worst := (mine - other).abs().max().item()) > ROUTE_TOLERANCE:
            return f"{name} by {worst:.1e}"
    return None


def size(q: Tensor) -> Tensor:
    """Magnitudes of E4M3 numbers."""
    return q.float().abs().to(E4M3)


def as_bytes(x: Tensor) -> Tensor:
    return x.contiguous().flatten().view(torch.uint8)
