"""A GPU that computes nothing: it has tensors with shapes and dtypes, and no numbers in them.

Who asks it for a number, or for a shape that hangs on numbers, gets an error. PyTorch's spare device type is
registered for good, so what runs on it has a process of its own: `run_apart`.
"""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.utils.backend_registration as registration
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

GPU = "gpu"
LOWERED = ("linear", "matmul", "mm", "bmm", "einsum", "scaled_dot_product_attention")
"""What PyTorch's autocast computes in lower precision on CUDA, of what we use under it."""


def run_apart(script: Path) -> Any:
    """What a script prints as JSON."""
    result = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


class _Backend(registration._DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


def register() -> list[torch.library.Library]:
    """Make it a device type with autocast, as long as the result lives."""
    registration._setup_privateuseone_for_python_backend(GPU, backend_module=_Backend())
    others, lowered = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    others.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    for name in LOWERED:
        lowered.impl(name, _lower(getattr(torch.ops.aten, name)), "AutocastPrivateUse1")
    return [others, lowered]


def _lower(operator: Callable) -> Callable:
    def low(x: Any) -> Any:
        return x.to(torch.get_autocast_dtype(GPU)) if isinstance(x, Tensor) and x.is_floating_point() else x

    def run(*args: Any, **options: Any) -> Any:
        key = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)
        with torch._C._ExcludeDispatchKeyGuard(key):
            return operator(*tree_map(low, args), **options)

    return run


class FakeGpu:
    """Within, tensors of the device can be made, and everything that runs is noted."""

    def __enter__(self) -> "FakeGpu":
        self._fake, self._watch = FakeTensorMode(allow_non_fake_inputs=True), _Watch()
        self._fake.__enter__()
        self._watch.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._watch.__exit__(*error)
        self._fake.__exit__(*error)

    @property
    def crossings(self) -> list[str]:
        """Operations between the devices, without `uploads`."""
        return self._watch.crossings

    @property
    def uploads(self) -> list[str]:
        """Copies to the GPU that nobody waits for. A graph would repeat them from memory that is gone."""
        return self._watch.uploads

    def count(self, operation: str) -> int:
        """How often operations with this in their name have run."""
        return sum(operation in str(func) for func in self._watch.operations)

    def casts(self, parameter: Tensor) -> int:
        """How often it was turned into bfloat16."""
        return self._watch.casts[parameter.untyped_storage()._cdata]

    def take_shapes(self) -> list[Any]:
        """The operations since the last call with the shapes of all their tensors."""
        shapes, self._watch.shapes = self._watch.shapes, []
        return shapes

    def adopt(self, model: nn.Module) -> None:
        """Move a model from the meta device."""
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[name] = nn.Parameter(torch.empty(parameter.shape, device=GPU))
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device=GPU)


class _Watch(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.crossings: list[str] = []
        self.uploads: list[str] = []
        self.operations: list[Any] = []
        self.shapes: list[Any] = []
        self.casts: Counter[int] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
        devices = [tensor.device.type for tensor in tensors]
        unwaited = kwargs.get("non_blocking", False) and devices == ["cpu", GPU]
        if len(set(devices)) > 1:
            (self.uploads if unwaited else self.crossings).append(f"{func} {devices}")
        if func is torch.ops.aten._to_copy.default and result.dtype is torch.bfloat16:
            self.casts[args[0].untyped_storage()._cdata] += 1
        self.operations.append(func)
        self.shapes.append((func, [tensor.shape for tensor in tensors]))
        return result
