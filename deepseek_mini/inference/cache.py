"""What attention keeps of the tokens so far.

Legend: B rows, C capacity in tokens, W numbers kept of a token in a layer.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from deepseek_mini.model.attention import SelfAttention


class Cache:
    """A buffer `[B, C, W]` for each layer, made once: decoding moves nothing and grows nothing.

    For MLA W is kv_lora_rank + qk_rope_head_dim: the normed latent and the turned key (V3 section 2.1.1).
    Rows may hold different numbers of tokens. Row i's lie at positions 0 to lengths[i] - 1; what stands
    behind them is never attended to and gets overwritten.
    """

    def __init__(
        self,
        layers: Sequence[SelfAttention],
        n_rows: int,
        capacity: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        widths = [sum(layer.kept_split) for layer in layers]
        self.buffers = [torch.zeros(n_rows, capacity, w, dtype=dtype, device=device) for w in widths]
        self.lengths = [0] * n_rows
        self.lengths_B = torch.zeros(n_rows, dtype=torch.int64, device=device)
        """The same on the device, always at the same address."""

    @property
    def capacity(self) -> int:
        return self.buffers[0].shape[1]

    @property
    def bytes_per_token(self) -> int:
        """Of all layers together."""
        return sum(buffer.shape[-1] * buffer.element_size() for buffer in self.buffers)

    @property
    def nbytes(self) -> int:
        """Of everything: rows x capacity x bytes per token."""
        return sum(buffer.nbytes for buffer in self.buffers)

    def write(self, layer: int, kept_BTW: Tensor, slots_N: Tensor) -> None:
        """Put new tokens into their slots, which count through the positions of row after row."""
        self.buffers[layer].flatten(0, 1).index_copy_(0, slots_N, kept_BTW.flatten(0, 1))

    def rewind(self, counts: Sequence[int]) -> None:
        """Forget each row's last tokens. Where that is as many in every row, nothing is copied."""
        self.lengths = [length - count for length, count in zip(self.lengths, counts, strict=True)]
        same = len(set(counts)) == 1
        self.lengths_B -= counts[0] if same else upload(counts, self.lengths_B.device)

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Go on with these rows only, in this order."""
        chosen = upload(rows, self.lengths_B.device)
        self.buffers = [buffer.index_select(0, chosen) for buffer in self.buffers]
        self.lengths = [self.lengths[row] for row in rows]
        self.lengths_B = self.lengths_B.index_select(0, chosen)


def upload(numbers: Sequence[Any], device: torch.device) -> Tensor:
    """Whole numbers on `device`, which is not waited for."""
    tensor = torch.tensor(numbers)
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)
