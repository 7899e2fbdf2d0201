"""The pass that decodes a token, replayed as a CUDA graph is: the same operations on the same memory."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from deepseek_mini.inference import blocks
from deepseek_mini.inference.decode import Decoder
from deepseek_mini.inference.sampling import Sampling
from deepseek_mini.model import experts
from deepseek_mini.model.transformer import build_model
from small_model import small_model_config


class Tape(TorchDispatchMode):
    """Operations with the tensors that they read and wrote."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result

    def replay(self) -> None:
        """All of it again; results go where they went before."""
        for func, args, kwargs, result in self.calls:
            again, read = func(*args, **kwargs), {storage(x) for x in tensors((args, kwargs))}
            for old, new in zip(tensors(result), tensors(again), strict=True):
                if storage(old) not in read:  # else it is a view, or was written in place
                    old.copy_(new)


def tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def storage(x: Tensor) -> int:
    return x.untyped_storage()._cdata


@torch.inference_mode()
def test_a_replayed_step_decodes_the_tokens_that_are_put_into_its_buffer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = build_model(small_model_config(), torch.device("cpu"), 0)
    monkeypatch.setattr(blocks, "VISITING", 0)
    monkeypatch.setattr(blocks.CachedBlocks, "_attended", lambda self, _: self.cache.capacity)
    inner = model.blocks()[1].ffn.experts.inner
    monkeypatch.setattr(experts._ExpertLoop, "apply", partial(experts._grouped_experts, inner))
    plain, graphed = (Decoder(model, 2, 16, Sampling(0)) for _ in range(2))
    for decoder in (plain, graphed):
        decoder.read([[1, 2, 3], [4, 5]])
        decoder.newest_B1.copy_(torch.tensor([[6], [7]]))
    with Tape() as tape:
        logits_BV = graphed.step()
    assert torch.equal(logits_BV, plain.step())
    for tokens in ([[8], [9]], [[10], [11]], [[8], [9]]):
        plain.newest_B1.copy_(torch.tensor(tokens))
        graphed.newest_B1.copy_(torch.tensor(tokens))
        tape.replay()
        assert torch.equal(logits_BV, plain.step())
    assert graphed.trunk.cache.lengths_B.tolist() == plain.trunk.cache.lengths == [7, 6]


def test_decoding_goes_on_in_the_same_buffers_until_a_row_ends() -> None:
    model = build_model(small_model_config(), torch.device("cpu"), 0)
    decoder = Decoder(model, 3, 16, Sampling(0))
    decoder.start([[1, 2, 3], [4, 5], [6]])

    def addresses() -> list[int]:
        cache = decoder.trunk.cache
        return [x.data_ptr() for x in (decoder.newest_B1, cache.lengths_B, *cache.buffers)]

    with torch.inference_mode():
        before = addresses()
        first, second = decoder.advance(), decoder.advance()
        assert addresses() == before
        assert decoder.newest_B1.tolist() == first != second
        decoder.keep_rows([2, 0])
        last = decoder.newest
        decoder.advance()
        assert decoder.newest_B1.tolist() == [[token] for token in last]
