"""Bytes of the tensors that PyTorch has made and that are still alive, whoever holds them."""

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveMemory(TorchDispatchMode):
    """Counts what is made inside `with`, but for new views of `existing` tensors."""

    def __init__(self, *existing: Tensor) -> None:
        super().__init__()
        self._existing = {tensor.untyped_storage()._cdata for tensor in existing}
        self._storages: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in self._existing:
                storage = leaf.untyped_storage()
                reference = StorageWeakRef(storage)
                self._storages[reference.cdata] = reference, storage.nbytes()
        return result

    def bytes(self) -> int:
        return sum(nbytes for reference, nbytes in self._storages.values() if not reference.expired())
