"""Every production configuration of every kernel: the launcher runs these, the checks compile these.

No triton is imported here, so that the table can be read anywhere.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from deepseek_mini_kernels.formats import SMALLEST_AMAX, SMALLEST_GRADIENT


@dataclass(frozen=True, slots=True)
class Launch:
    """One compiled variant of a kernel: what it is specialised on, and how many warps and stages it has."""

    name: str
    module: str
    """Module of the kernel below this package."""
    kernel: str
    types: Mapping[str, str]
    """Arguments in the kernel's order, without constants, and the types that production passes."""
    tile: Mapping[str, int | bool] = field(default_factory=dict)
    """Constants of this configuration."""
    problem: Mapping[str, float | str] = field(default_factory=dict)
    """Constants that follow from the call; the values here are the ones the checks compile."""
    divisible: frozenset[str] = frozenset()
    """Integer arguments that are multiples of 16. Pointers always are."""
    num_warps: int = 4
    num_stages: int = 1
    tensor_cores: bool = False
    """Runs FP8 matrix products, with pipelined loads."""


E4M3, BF16, FP32 = "*fp8e4nv", "*bf16", "*fp32"

_QUANTIZE_TILES_TYPES = {
    "x_ptr": BF16,
    "x_scale_ptr": FP32,
    "counts_ptr": "*i64",
    "q_ptr": E4M3,
    "scale_ptr": FP32,
    "qt_ptr": E4M3,
    "scale_t_ptr": FP32,
    "M": "i32",
    "K": "i32",
    "P": "i32",
    "E": "i32",
}
_GROUPS = {"GROUPED": True, "GROUPS": 256}

QUANTIZE_ROWS = Launch(
    "quantize_activation",
    *("quantize.triton", "quantize_rows_kernel"),
    types={"x_ptr": BF16, "q_ptr": E4M3, "scale_ptr": FP32, "M": "i32", "K": "i32"},
    tile={"BLOCK_M": 32, "BLOCK": 128},
    problem={"POW2": False, "SMALLEST": SMALLEST_AMAX},
    divisible=frozenset({"K"}),
)

QUANTIZE_TILES = {
    name: Launch(
        f"quantize_{name}",
        *("quantize.triton", "quantize_tiles_kernel"),
        types=_QUANTIZE_TILES_TYPES | {"x_ptr": E4M3 if dequantize else BF16},
        tile={"ROWS": rows, "DEQUANTIZE": dequantize, "BLOCK": 128},
        problem={"POW2": False, "SMALLEST": SMALLEST_AMAX, **_GROUPS},
        divisible=frozenset({"K", "P"}),
        num_warps=16,
    )
    for name, rows, dequantize in (
        ("columns", False, False),
        ("both", True, False),
        ("requantize", False, True),
    )
}

QUANTIZE_WEIGHT = {
    transpose: Launch(
        "quantize_weight_and_transpose" if transpose else "quantize_weight",
        *("quantize.triton", "quantize_weight_kernel"),
        types={"w_ptr": FP32, "q_ptr": E4M3, "qt_ptr": E4M3, "scale_ptr": FP32, "N": "i32", "K": "i32"},
        tile={"TRANSPOSE": transpose, "BLOCK": 128},
        problem={"POW2": False},
        divisible=frozenset({"N", "K"}),
        num_warps=16,
    )
    for transpose in (False, True)
}

_MATMUL_TYPES = {
    "a_ptr": E4M3,
    "a_scale_ptr": FP32,
    "b_ptr": E4M3,
    "b_scale_ptr": FP32,
    "c_ptr": BF16,
    "M": "i32",
    "N": "i32",
    "K": "i32",
}
_WIDTHS = {
    "even": {"EVEN_K": True},
    "ragged": {"EVEN_K": False},
    "general": {"EVEN_K": False, "BLOCK_M": 64, "BLOCK_N": 64},
}
"""K in multiples of 128, in multiples of 16, and anything else, which is right but slow."""


def width_of(k: int, is_aligned: bool) -> str:
    """Which of the three kinds a summed width `k` is, where `is_aligned` tells of multiples of 16."""
    return "general" if not is_aligned else "even" if k % 128 == 0 else "ragged"


def _products(name: str, width: str, block_m: int, **fields) -> Launch:
    """A kernel of FP8 products; `fields` are those of Launch."""
    pipelined = width != "general"
    own = fields.pop("tile", {})
    tile = {"BLOCK_M": block_m, "BLOCK_N": 128, "BLOCK_K": 128, **own, **_WIDTHS[width]}
    return Launch(
        name if width == "even" else f"{name}_{width}",
        tile=tile,
        divisible=frozenset({"N", "K", "P"} if pipelined else {"P"}) & fields["types"].keys(),
        num_warps=8 if tile["BLOCK_M"] == 128 or not pipelined else 4,
        num_stages=4 if pipelined else 1,
        tensor_cores=True,
        **fields,
    )


_MATMUL = {
    (width, b_tiles, few_rows): _products(
        f"matmul_{'tiles' if b_tiles else 'blocks'}{'_few_rows' * few_rows}",
        width,
        64 if few_rows else 128,
        module="matmul.triton",
        kernel="block_scaled_matmul_kernel",
        types=_MATMUL_TYPES | {"c_ptr": FP32 if b_tiles else BF16},
        tile={"BAND": 8, "B_TILES": b_tiles},
    )
    for width in _WIDTHS
    for b_tiles in (False, True)
    for few_rows in (False, True)
    if few_rows or width != "general"
}


def matmul_config(m: int, width: str, b_tiles: bool) -> Launch:
    """For m rows and a summed width of this kind; `b_tiles` if b has 1x128 tiles."""
    return _MATMUL[width, b_tiles, m <= 64 or width == "general"]


_GROUPED = {
    (width, few_rows): _products(
        f"grouped_matmul{'_few_rows' * few_rows}",
        width,
        64 if few_rows else 128,
        module="grouped_matmul.triton",
        kernel="grouped_matmul_kernel",
        types={
            "a_ptr": E4M3,
            "a_scale_ptr": FP32,
            "b_ptr": E4M3,
            "b_scale_ptr": FP32,
            "c_ptr": BF16,
            "counts_ptr": "*i64",
            "S": "i32",
            "N": "i32",
            "K": "i32",
            "E": "i32",
        },
        problem={"GROUPS": 256},
    )
    for width in _WIDTHS
    for few_rows in (False, True)
    if few_rows or width != "general"
}
_WGRAD = {
    (is_aligned, few_rows): _products(
        f"grouped_wgrad{'_few_rows' * few_rows}",
        "even" if is_aligned else "general",
        64 if few_rows else 128,
        module="grouped_matmul.triton",
        kernel="grouped_wgrad_kernel",
        types={
            "a_ptr": E4M3,
            "a_scale_ptr": FP32,
            "b_ptr": E4M3,
            "b_scale_ptr": FP32,
            "c_ptr": FP32,
            "counts_ptr": "*i64",
            "N": "i32",
            "K": "i32",
            "P": "i32",
            "E": "i32",
        },
        problem={"GROUPS": 256},
    )
    for is_aligned, few_rows in ((True, False), (True, True), (False, True))
}


def grouped_config(rows_per_group: int, width: str) -> Launch:
    """For so many rows per expert on average and a summed width of this kind."""
    return _GROUPED[width, rows_per_group <= 64 or width == "general"]


def wgrad_config(n: int, is_aligned: bool) -> Launch:
    """For weights of n rows whose sizes and addresses are multiples of 16, or not."""
    return _WGRAD[is_aligned, n <= 64 or not is_aligned]


SWIGLU_ROWS = Launch(
    "swiglu_quantize",
    *("swiglu.triton", "swiglu_rows_kernel"),
    types={
        "gate_ptr": BF16,
        "up_ptr": BF16,
        "weights_ptr": FP32,
        "q_ptr": E4M3,
        "scale_ptr": FP32,
        "S": "i32",
        "INNER": "i32",
    },
    tile={"BLOCK_M": 32, "BLOCK": 128},
    problem={"POW2": False, "WEIGHTED": True},
    divisible=frozenset({"INNER"}),
)

SWIGLU_COLUMNS = Launch(
    "swiglu_quantize_columns",
    *("swiglu.triton", "swiglu_columns_kernel"),
    types={
        "gate_ptr": BF16,
        "up_ptr": BF16,
        "weights_ptr": FP32,
        "counts_ptr": "*i64",
        "qt_ptr": E4M3,
        "scale_t_ptr": FP32,
        "S": "i32",
        "INNER": "i32",
        "P": "i32",
        "E": "i32",
    },
    tile={"BLOCK": 128},
    problem={"POW2": False, "WEIGHTED": True, **_GROUPS},
    divisible=frozenset({"INNER", "P"}),
    num_warps=16,
)

ROUTE = Launch(
    "route",
    *("router.triton", "route_kernel"),
    types={
        "logits_ptr": FP32,
        "bias_ptr": FP32,
        "weights_ptr": FP32,
        "experts_ptr": "*i64",
        "scores_ptr": FP32,
        "N": "i32",
        "route_scale": "fp32",
    },
    tile={"BLOCK_T": 8},
    problem={
        "G": 8,
        "X": 32,
        "LIMITED": 4,
        "K": 8,
        "WIDE_G": 8,
        "WIDE_X": 32,
        "WIDE_K": 8,
        "SIGMOID": True,
        "TOP2": True,
        "BIASED": True,
    },
)

PRODUCTION = {
    config.name: config
    for config in (
        QUANTIZE_ROWS,
        *QUANTIZE_TILES.values(),
        *QUANTIZE_WEIGHT.values(),
        *_MATMUL.values(),
        *_GROUPED.values(),
        *_WGRAD.values(),
        SWIGLU_ROWS,
        SWIGLU_COLUMNS,
        ROUTE,
    )
}
"""Every configuration by its name."""


def _call(name: str, problem: dict[str, float] | None = None, **types: str) -> Launch:
    """A production configuration, called with other types or problem constants."""
    config = PRODUCTION[name]
    return replace(config, types={**config.types, **types}, problem={**config.problem, **(problem or {})})


OTHER_CALLS = {
    "quantize_activation:fp32": _call("quantize_activation", x_ptr=FP32),
    "quantize_both:fp32": _call("quantize_both", x_ptr=FP32),
    "quantize_both:pow2": _call("quantize_both", {"POW2": True}),
    "quantize_both:gradient": _call("quantize_both", {"SMALLEST": SMALLEST_GRADIENT}),
    "quantize_both:one_group": _call("quantize_both", {"GROUPED": False}),
    "quantize_weight_and_transpose:bf16": _call("quantize_weight_and_transpose", w_ptr=BF16),
    "swiglu_quantize_columns:fp32": _call("swiglu_quantize_columns", gate_ptr=FP32, up_ptr=FP32),
    "matmul_blocks:fp32": _call("matmul_blocks", c_ptr=FP32),
    "matmul_tiles:bf16": _call("matmul_tiles", c_ptr=BF16),
    "matmul_tiles_few_rows:bf16": _call("matmul_tiles_few_rows", c_ptr=BF16),
    "grouped_matmul:fp32": _call("grouped_matmul", c_ptr=FP32),
    "grouped_wgrad:bf16": _call("grouped_wgrad", c_ptr=BF16),
    "route:v2": _call(
        "route", {"X": 20, "LIMITED": 3, "K": 6, "SIGMOID": False, "TOP2": False, "BIASED": False}
    ),
    "route:v2_lite": _call(
        "route", {"G": 1, "X": 64, "WIDE_G": 1, "WIDE_X": 64, "LIMITED": 1, "K": 6, "SIGMOID": False}
    ),
}
"""What else production passes to the same configurations, by `configuration:difference`."""
