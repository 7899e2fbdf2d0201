import pytest
import torch

from kernel_helpers import HAS_TRITON, INTERPRETED, poison

if HAS_TRITON and INTERPRETED:
    import triton_interpreter

    triton_interpreter.mend()


@pytest.fixture(autouse=True)
def poisoned_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh memory is full of NaN, so an output that a kernel leaves out shows."""
    for owner, name in ((torch, "empty_like"), (torch.Tensor, "new_empty")):
        allocate = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, _allocate=allocate, **k: poison(_allocate(*a, **k)))
