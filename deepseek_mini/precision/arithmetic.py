"""The FP8 arithmetic that the converted layers of one model share."""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from deepseek_mini.config import Accumulation, Backend, Granularity, PrecisionConfig
from deepseek_mini.precision.products import EmulatedProducts, KernelProducts, Products
from deepseek_mini.precision.quantizers import BlockGradients, PerTensor, Quantizers, Tiles
from deepseek_mini_kernels.formats import Scales
from deepseek_mini_kernels.matmul import HopperAccumulation

QUANTIZERS = {
    Granularity.tiles: Quantizers,
    Granularity.tensor: PerTensor,
    Granularity.block_gradients: BlockGradients,
}
ACCUMULATIONS = {
    Accumulation.hopper: HopperAccumulation(128, align_products=False),
    Accumulation.hopper_unpromoted: HopperAccumulation(None, align_products=False),
}


class Arithmetic:
    """Who quantises and who multiplies, and what need not be quantised twice."""

    def __init__(self, quantizers: Quantizers, products: Products) -> None:
        self.quantizers, self.products = quantizers, products
        self._held: dict[int, Any] | None = None
        self._last: tuple[weakref.ref[Tensor], int, Tiles] | None = None

    def weight(self, w_NK: Tensor) -> Any:
        """A weight, or a stack of them, ready for its products; afresh unless weights are held."""
        if self._held is None:
            return self._prepare(w_NK)
        if id(w_NK) not in self._held:
            self._held[id(w_NK)] = self._prepare(w_NK)
        return self._held[id(w_NK)]

    def _prepare(self, w_NK: Tensor) -> Any:
        with torch.no_grad():
            return self.products.prepare(w_NK.detach(), self.quantizers)

    @contextmanager
    def holding_weights(self) -> Iterator[None]:
        """Within, parameters stay as they are: each is quantised once. Nothing is kept beyond."""
        self._held = {}
        try:
            yield
        finally:
            self._held = None

    def input_rows(self, x: Tensor) -> Tiles:
        """`rows` of a linear's input `[..., K]`; once for neighbours with the same one, as w1 and w3."""
        if x.is_inference():  # has no version
            return self.quantizers.rows(x.reshape(-1, x.shape[-1]))
        if self._last is not None:
            last, version, tiles = self._last
            if last() is x and version == x._version:
                return tiles
        tiles = self.quantizers.rows(x.detach().reshape(-1, x.shape[-1]))
        self._last = weakref.ref(x), x._version, tiles
        return tiles


def build_arithmetic(precision: PrecisionConfig) -> Arithmetic:
    """The arithmetic of `backend=emulated` or `triton`."""
    scales: Scales = "pow2" if precision.scales == "pow2" else "fp32"
    if precision.backend is Backend.triton:
        return Arithmetic(Quantizers(scales, "triton"), KernelProducts("triton"))
    assert precision.backend is Backend.emulated
    quantizers = QUANTIZERS[precision.granularity](scales, "naive")
    accumulation = ACCUMULATIONS.get(precision.accumulation)
    products = KernelProducts("naive", accumulation) if accumulation else EmulatedProducts()
    return Arithmetic(quantizers, products)
