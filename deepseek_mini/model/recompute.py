"""Activations that the backward pass makes again instead of having them kept (`trainer.recompute`).

`full` keeps the input of each block. `v3` makes again what DeepSeek-V3 does: every RMSNorm and MLA's
up-projections (V3 section 3.2.3), and the product inside SwiGLU (section 3.3.3). It keeps the results of the
other matrix products, of attention, and of the dispatch to the experts.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.checkpoint import checkpoint

from deepseek_mini.config import Recompute
from deepseek_mini.model.attention import MultiHeadLatentAttention
from deepseek_mini.model.dtype import Cast
from deepseek_mini.model.experts import Mlp, RoutedExperts
from deepseek_mini.model.mtp import MtpModule
from deepseek_mini.model.norm import RMSNorm
from deepseek_mini.model.transformer import Transformer

CHEAP = (
    (RMSNorm, "forward"),
    (Cast, "forward"),
    (MtpModule, "normed"),
    (MultiHeadLatentAttention, "heads"),
    (Mlp, "inner"),
    (RoutedExperts, "inner"),
)
"""The methods whose results v3 makes again."""


def recompute(model: Transformer, choice: Recompute) -> None:
    """Change what `model` keeps for its backward pass; losses, counts and gradients stay as they are."""
    if choice is Recompute.full:
        model.call_block = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
    elif choice is Recompute.v3:
        watch = _Watch()
        setattr(model, "predict", partial(watch.run, model.predict))  # noqa: B010
        for module in model.modules():
            for kind, name in CHEAP:
                if isinstance(module, kind):
                    setattr(module, name, partial(watch.cheap, getattr(module, name)))


class _Call:
    """A call that can be made again, for its results and for what its own backward pass needs.

    It is made again once, when the first of these is asked for, and lives until autograd has dropped its
    last note of one of them.
    """

    def __init__(self, function: Callable, inputs: tuple[Tensor, ...], kept: "list[_Kept]") -> None:
        self._function, self._inputs = function, kept
        self._needs_grad = [x.requires_grad for x in inputs]
        self._n_saved = 0
        self._again: tuple[list[Tensor], list[Tensor]] | None = None
        device = inputs[0].device.type
        self._autocast = (device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device))

    def note(self, _: Tensor) -> "_Saved":
        """For the next tensor that the call saves."""
        self._n_saved += 1
        return _Saved(self, self._n_saved - 1)

    def again(self) -> tuple[list[Tensor], list[Tensor]]:
        """What the call saves, in order, and its results."""
        if self._again is None:
            inputs = [
                _tensor(kept).detach().requires_grad_(needs_grad)
                for kept, needs_grad in zip(self._inputs, self._needs_grad, strict=True)
            ]
            saved: list[Tensor] = []
            with (
                torch.enable_grad(),
                torch.autocast(*self._autocast),
                saved_tensors_hooks(lambda tensor: saved.append(tensor.detach()), _tensor),
            ):
                results = _as_tuple(self._function(*inputs))
            self._again = saved, [result.detach() for result in results]
        return self._again


class _Saved(NamedTuple):
    """A tensor that a call saves for its own backward pass."""

    call: _Call
    place: int


class _Result(NamedTuple):
    """A view of a call's result."""

    call: _Call
    place: int
    size: torch.Size
    stride: tuple[int, ...]
    offset: int


_Kept = Tensor | _Saved | _Result


def _tensor(kept: _Kept) -> Tensor:
    if isinstance(kept, _Saved):
        return kept.call.again()[0][kept.place]
    if isinstance(kept, _Result):
        return kept.call.again()[1][kept.place].as_strided(kept.size, kept.stride, kept.offset)
    return kept


class _Watch:
    """Sees what autograd saves, and has it keep a note instead where that is a result of a cheap call.

    What is saved is often a view of a result, so results are known by their storages.
    """

    def __init__(self) -> None:
        self._results: dict[int, tuple[StorageWeakRef, _Call, int]] = {}
        self._inside = False

    def run(self, function: Callable, *args: Any, **options: Any) -> Any:
        """The model's forward pass."""
        with saved_tensors_hooks(self._keep, _tensor):
            try:
                return function(*args, **options)
            finally:
                self._results.clear()

    def cheap(self, function: Callable, *inputs: Tensor) -> Any:
        """A call whose results, and what it saves itself, need not be kept."""
        if self._inside or not torch.is_grad_enabled():
            return function(*inputs)
        function = partial(self._outermost, function)
        call = _Call(function, inputs, [self._keep(x) for x in inputs])
        with saved_tensors_hooks(call.note, _tensor):
            results = function(*inputs)
        for place, result in enumerate(_as_tuple(results)):
            storage = StorageWeakRef(result.untyped_storage())  # while it is held, no other has its key
            self._results[storage.cdata] = storage, call, place
        return results

    def _outermost(self, function: Callable, *inputs: Tensor) -> Any:
        """Cheap calls inside a cheap call are made again with it."""
        self._inside = True
        try:
            return function(*inputs)
        finally:
            self._inside = False

    def _keep(self, tensor: Tensor) -> _Kept:
        found = self._results.get(tensor.untyped_storage()._cdata)
        if found is None:
            return tensor.detach()
        _, call, place = found
        return _Result(call, place, tensor.shape, tensor.stride(), int(tensor.storage_offset()))


def _as_tuple(results: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return results if isinstance(results, tuple) else (results,)
