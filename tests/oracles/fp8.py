"""DeepSeek-V3's FP8 linear and experts written out: tiles one after the other, products in float64.

Every step can be left out by its name, to show what a result without it would be.
"""

import math
from collections.abc import Collection

import numpy as np

Array = np.ndarray
FLOOR, GRADIENT_FLOOR = 1e-4, 1e-30


def numbers_of(exponent_bits: int, mantissa_bits: int, largest: float) -> Array:
    """All numbers of a small format from 0 up, subnormals among them, in the order of their codes."""
    bias = 2 ** (exponent_bits - 1) - 1
    numbers = []
    for exponent in range(2**exponent_bits):
        for mantissa in range(2**mantissa_bits):
            fraction = mantissa / 2**mantissa_bits + (exponent > 0)
            numbers.append(fraction * 2.0 ** (max(exponent, 1) - bias))
    return np.array([x for x in numbers if x <= largest])


E4M3 = numbers_of(4, 3, 448.0)
E5M6 = numbers_of(5, 6, 65024.0)


def nearest(x: Array, numbers: Array) -> Array:
    """The nearest of the numbers, of two equally near ones the one with the even code; no larger than all."""
    size = np.minimum(np.abs(x.astype(np.float64)), numbers[-1])
    above = np.clip(np.searchsorted(numbers, size), 1, len(numbers) - 1)
    below = above - 1
    to_below, to_above = size - numbers[below], numbers[above] - size
    code = np.where(to_below < to_above, below, above)
    code = np.where(to_below == to_above, np.where(below % 2 == 0, below, above), code)
    return np.copysign(numbers[code], x)


def quantised(
    x: Array, height: int, width: int, scales: str, floor: float = FLOOR, numbers: Array = E4M3
) -> Array:
    """What x becomes in tiles of height x width: a factor and a small number for each place."""
    result = np.zeros(x.shape)
    for i in range(0, x.shape[0], height):
        for j in range(0, x.shape[1], width):
            place = np.s_[i : i + height, j : j + width]
            tile = x[place].astype(np.float32)
            amax = np.maximum(np.abs(tile).max(), np.float32(floor))
            factor = np.float32(amax / np.float32(numbers[-1]))
            if scales == "pow2":
                factor = np.float32(2.0 ** math.ceil(math.log2(float(factor))))
            result[place] = nearest(tile / factor, numbers) * np.float64(factor)
    return result


LINEAR_STEPS = ("fprop x", "fprop w", "dgrad dy", "dgrad w", "wgrad dy", "keep x", "wgrad x")


def linear(
    x: Array, w: Array, dy: Array, scales: str, without: Collection[str] = (), after_attention: bool = False
) -> tuple[Array, Array, Array]:
    """y = x w^T, dx = dy w and dw = dy^T x, each from quantised operands.

    "keep x" is the copy of x that Wgrad starts from, E4M3 or after attention E5M6; "wgrad x" its tiles.
    """

    def step(name: str, value: Array, *how) -> Array:
        return value if name in without else quantised(value, *how)

    x_scales = "pow2" if after_attention else scales
    kept_as = (FLOOR, E5M6) if after_attention else ()
    y = step("fprop x", x, 1, 128, x_scales) @ step("fprop w", w, 128, 128, scales).T
    dx = step("dgrad dy", dy, 1, 128, scales, GRADIENT_FLOOR) @ step("dgrad w", w, 128, 128, scales)
    kept = step("keep x", x, 1, 128, x_scales, *kept_as)
    dw = step("wgrad dy", dy, 128, 1, scales, GRADIENT_FLOOR).T @ step("wgrad x", kept, 128, 1, x_scales)
    return y, dx, dw


def sigmoid(x: Array) -> Array:
    return 0.5 * (1 + np.tanh(x / 2))


EXPERT_STEPS = (
    *("x", "w", "inner", "keep gate", "keep up", "dy", "wgrad dy", "wgrad inner"),
    *("d gate", "d up", "wgrad d gate", "wgrad d up", "wgrad x"),
)


def experts(
    x: Array,
    gates: Array,
    chosen: Array,
    weights: tuple[Array, Array, Array],
    dy: Array,
    scales: str,
    without: Collection[str] = (),
) -> dict[str, Array]:
    """Sum over each token's experts of gate * w2 (silu(w1 x) * w3 x), one expert after the other.

    Tokens and their gradients are quantised once, with powers of two as factors, for all of their experts.
    """

    def step(name: str, value: Array, *how) -> Array:
        return value if name in without else quantised(value, *how)

    def rows(name: str, value: Array) -> Array:
        return step(name, value, 1, 128, scales, GRADIENT_FLOOR if name.startswith("d ") else FLOOR)

    def columns(name: str, value: Array, scales: str = scales) -> Array:
        return step(name, value, 128, 1, scales, GRADIENT_FLOOR if name.startswith("wgrad d") else FLOOR)

    x_sent = step("x", x, 1, 128, "pow2")
    dy_sent = step("dy", dy, 1, 128, "pow2", GRADIENT_FLOOR)
    w1, w2, w3 = (np.stack([step("w", own, 128, 128, scales) for own in stack]) for stack in weights)
    y, dx, d_gates = np.zeros(x.shape), np.zeros(x.shape), np.zeros(gates.shape)
    dw1, dw2, dw3 = (np.zeros(stack.shape) for stack in weights)
    for e in range(len(w1)):
        tokens, ranks = np.nonzero(chosen == e)
        if not len(tokens):
            continue
        own, own_dy, gate_weight = x_sent[tokens], dy_sent[tokens], gates[tokens, ranks][:, None]
        gate, up = own @ w1[e].T, own @ w3[e].T
        np.add.at(y, tokens, rows("inner", gate * sigmoid(gate) * up * gate_weight) @ w2[e].T)

        gate, up = rows("keep gate", gate), rows("keep up", up)
        share = sigmoid(gate)
        inner, d_inner = gate * share * up, own_dy @ w2[e]
        dw2[e] = columns("wgrad dy", own_dy, "pow2").T @ columns("wgrad inner", inner * gate_weight)
        d_gates[tokens, ranks] = (d_inner * inner).sum(1)
        d_up = d_inner * gate_weight * gate * share
        d_gate = d_inner * gate_weight * up * share * (1 + gate * (1 - share))
        own_columns = columns("wgrad x", own, "pow2")
        dw1[e] = columns("wgrad d gate", d_gate).T @ own_columns
        dw3[e] = columns("wgrad d up", d_up).T @ own_columns
        np.add.at(dx, tokens, rows("d gate", d_gate) @ w1[e] + rows("d up", d_up) @ w3[e])
    return {"y": y, "x": dx, "gates": d_gates, "w1": dw1, "w2": dw2, "w3": dw3}
