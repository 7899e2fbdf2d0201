"""AdamW and Muon's momentum on single numbers, with moments that are rounded between steps; Muon on a matrix.

A matrix is a list of its rows.
"""

import math
import struct
from collections.abc import Callable

Matrix = list[list[float]]


def to_bf16(x: float) -> float:
    """The nearest number with 8 bits of mantissa, of two equally near ones the even."""
    (bits,) = struct.unpack("<I", struct.pack("<f", x))
    bits = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000
    return struct.unpack("<f", struct.pack("<I", bits))[0]


def adamw(
    weight: float,
    gradients: list[float],
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    keep: Callable[[float], float] = to_bf16,
) -> tuple[float, float, float]:
    """The weight after a step for each gradient, and the moments that are kept (arXiv:1711.05101)."""
    kept_mean = kept_square = 0.0
    for step, gradient in enumerate(gradients, start=1):
        mean = betas[0] * kept_mean + (1 - betas[0]) * gradient
        square = betas[1] * kept_square + (1 - betas[1]) * gradient**2
        size = math.sqrt(square / (1 - betas[1] ** step)) + eps
        weight -= lr * weight_decay * weight
        weight -= lr * mean / (1 - betas[0] ** step) / size
        kept_mean, kept_square = keep(mean), keep(square)
    return weight, kept_mean, kept_square


def momentum(gradients: list[float], factor: float, keep: Callable[[float], float] = to_bf16) -> float:
    """What is kept of the gradients' running mean."""
    kept = 0.0
    for gradient in gradients:
        kept = keep(factor * kept + (1 - factor) * gradient)
    return kept


def muon(
    weight: Matrix,
    gradients: list[Matrix],
    lr: float,
    factor: float,
    weight_decay: float,
    polynomials: tuple[tuple[float, float, float], ...],
) -> Matrix:
    """The matrix after a step for each gradient, with Nesterov's momentum (scaled as in arXiv:2502.16982)."""
    size = 0.2 * math.sqrt(max(len(weight), len(weight[0])))
    kept = _sum((0.0, weight))
    for gradient in gradients:
        kept = _sum((factor, kept), (1 - factor, gradient))
        direction = orthogonalised(_sum((factor, kept), (1 - factor, gradient)), polynomials)
        weight = _sum((1 - lr * weight_decay, weight), (-lr * size, direction))
    return weight


def orthogonalised(x: Matrix, polynomials: tuple[tuple[float, float, float], ...]) -> Matrix:
    """X / |X|, then X <- a X + b (X X^T) X + c (X X^T)^2 X for one (a, b, c) after the other."""
    norm = math.sqrt(sum(number**2 for row in x for number in row))
    x = _sum((1 / (norm + 1e-7), x))
    for a, b, c in polynomials:
        gram = _product(x, [list(column) for column in zip(*x, strict=True)])
        cubic = _product(gram, x)
        x = _sum((a, x), (b, cubic), (c, _product(gram, cubic)))
    return x


def _sum(*terms: tuple[float, Matrix]) -> Matrix:
    """Matrices times a number each, added."""
    _, first = terms[0]
    return [
        [sum(factor * matrix[i][j] for factor, matrix in terms) for j in range(len(first[0]))]
        for i in range(len(first))
    ]


def _product(left: Matrix, right: Matrix) -> Matrix:
    columns = list(zip(*right, strict=True))
    return [[sum(a * b for a, b in zip(row, column, strict=True)) for column in columns] for row in left]
