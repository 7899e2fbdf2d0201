"""The small parts that every oracle uses: linear maps, RMSNorm, SwiGLU, softmax, cross-entropy.

A vector is a list of numbers, a matrix a list of its rows, and parameters are a dict from the names
of a checkpoint ("wq_a.weight") to them.
"""

from oracles.autodiff import Number, dot, exp, log, plain

Vector = list[Number]
Matrix = list[Vector]
Parameters = dict[str, list]


def part(parameters: Parameters, prefix: str) -> Parameters:
    """The parameters whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): p for name, p in parameters.items() if name.startswith(prefix)}


def linear(weight: Matrix, x: Vector) -> Vector:
    return [dot(row, x) for row in weight]


def add(*vectors: Vector) -> Vector:
    return [sum(numbers) for numbers in zip(*vectors, strict=True)]


def rms_norm(weight: Vector, x: Vector, eps: float = 1e-6) -> Vector:
    inverse = (dot(x, x) / len(x) + eps) ** -0.5
    return [w * number * inverse for w, number in zip(weight, x, strict=True)]


def sigmoid(x: Number) -> Number:
    return 1 / (1 + exp(-x))


def softmax(x: Vector) -> Vector:
    largest = max(plain(number) for number in x)
    powers = [exp(number - largest) for number in x]
    total = sum(powers)
    return [power / total for power in powers]


def mlp(parameters: Parameters, x: Vector) -> Vector:
    """SwiGLU: w2 (silu(w1 x) * w3 x)."""
    gate, up = linear(parameters["w1.weight"], x), linear(parameters["w3.weight"], x)
    inner = [g * sigmoid(g) * u for g, u in zip(gate, up, strict=True)]
    return linear(parameters["w2.weight"], inner)


def cross_entropy(logits: Vector, target: int) -> Number:
    """-log softmax(logits)[target]."""
    return -log(softmax(logits)[target])
