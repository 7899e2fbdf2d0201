"""Reverse-mode differentiation of scalars in plain Python, for the oracles.

An oracle computes with numbers that are floats, or `Value`s where a gradient is wanted; the same code
serves both. Whatever an oracle decides by comparing (which experts a token goes to) it decides on
`plain(number)`, so that decisions are constants of the backward pass.
"""

import itertools
import math
from collections.abc import Sequence


class Value:
    """A number that remembers which numbers it came from, and its derivative by each of them."""

    __slots__ = ("data", "grad", "parents", "partials", "serial")
    _serials = itertools.count()

    def __init__(self, data: float, parents: Sequence["Value"] = (), partials: Sequence[float] = ()) -> None:
        self.data = data
        self.grad = 0.0
        self.parents = parents
        self.partials = partials
        self.serial = next(Value._serials)

    def __add__(self, other: "Number") -> "Value":
        if isinstance(other, Value):
            return Value(self.data + other.data, (self, other), (1.0, 1.0))
        return Value(self.data + other, (self,), (1.0,))

    def __mul__(self, other: "Number") -> "Value":
        if isinstance(other, Value):
            return Value(self.data * other.data, (self, other), (other.data, self.data))
        return Value(self.data * other, (self,), (other,))

    def __pow__(self, exponent: float) -> "Value":
        return Value(self.data**exponent, (self,), (exponent * self.data ** (exponent - 1),))

    def __neg__(self) -> "Value":
        return self * -1.0

    def __sub__(self, other: "Number") -> "Value":
        return self + -other

    def __rsub__(self, other: float) -> "Value":
        return -self + other

    def __truediv__(self, other: "Number") -> "Value":
        return self * other**-1.0

    def __rtruediv__(self, other: float) -> "Value":
        return self**-1.0 * other

    __radd__ = __add__
    __rmul__ = __mul__


Number = float | Value


def plain(x: Number) -> float:
    """The number itself, cut off from the graph."""
    return x.data if isinstance(x, Value) else x


def exp(x: Number) -> Number:
    result = math.exp(plain(x))
    return Value(result, (x,), (result,)) if isinstance(x, Value) else result


def log(x: Number) -> Number:
    return Value(math.log(x.data), (x,), (1 / x.data,)) if isinstance(x, Value) else math.log(x)


def dot(a: Sequence[Number], b: Sequence[Number]) -> Number:
    """Sum of products, as one node of the graph."""
    result = sum(plain(x) * plain(y) for x, y in zip(a, b, strict=True))
    edges = [(x, plain(y)) for x, y in zip(a, b, strict=True) if isinstance(x, Value)]
    edges += [(y, plain(x)) for x, y in zip(a, b, strict=True) if isinstance(y, Value)]
    if not edges:
        return result
    return Value(result, [node for node, _ in edges], [partial for _, partial in edges])


def backward(loss: Number) -> None:
    """Add the derivative of `loss` by each number it came from to that number's `grad`."""
    assert isinstance(loss, Value)
    nodes, stack = {loss}, [loss]
    while stack:
        fresh = [node for node in stack.pop().parents if node not in nodes]
        nodes.update(fresh)
        stack.extend(fresh)
    loss.grad += 1.0
    for node in sorted(nodes, key=lambda node: node.serial, reverse=True):
        for parent, partial in zip(node.parents, node.partials, strict=True):
            parent.grad += partial * node.grad


def lift(nested):
    """Nested lists of floats as the same lists of `Value`s."""
    return [lift(item) for item in nested] if isinstance(nested, list) else Value(nested)


def lower(nested):
    """Nested lists of numbers as the same lists of floats."""
    return [lower(item) for item in nested] if isinstance(nested, list) else plain(nested)


def gradients(nested):
    """The gradients of nested lists of `Value`s."""
    return [gradients(item) for item in nested] if isinstance(nested, list) else nested.grad
