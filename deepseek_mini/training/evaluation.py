"""Held-out loss. Legend: B rows, S = T + 1 tokens of a row, T positions, N = B * T."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from deepseek_mini.data import Batch, Data
from deepseek_mini.model.loss import token_losses
from deepseek_mini.model.mtp import IGNORE
from deepseek_mini.model.transformer import Transformer, stack_counts
from deepseek_mini.training.balance import max_violation
from deepseek_mini.training.experts import RoutingCounts, watch_gates


@dataclass(slots=True)
class _Sums:
    nats: float = 0.0
    tokens: int = 0
    document_nats: float = 0.0
    document_bytes: int = 0
    mtp_nats: float = 0.0
    mtp_tokens: int = 0


@torch.no_grad()
def evaluate(
    model: Transformer,
    data: Data,
    n_sequences: int,
    micro_batch_size: int,
    autocast: torch.autocast,
    document_mask: bool = False,
    routing: RoutingCounts | None = None,
) -> dict[str, float | None]:
    """Losses over the first `n_sequences` held-out sequences, always the same ones.

    `val/loss` is nats per token. `val/bpb` is bits per byte: the nats of the documents' own tokens over
    their bytes, end-of-document tokens left out. `val/max_violation` is over all these sequences.
    Nothing is counted towards the balance of training. `routing` counts what each expert is chosen for.
    """
    device = model.head.weight.device
    sums, counts_LE = _Sums(), None
    for start in range(0, n_sequences, micro_batch_size):
        batch = data.validation.batch(start, min(micro_batch_size, n_sequences - start)).to(device)
        with autocast, watch_gates(model) as chosen:
            predictions, stats = model.predict(batch.tokens_BS, batch.documents_BS, document_mask)
            head_VD = model.head.weight
            losses = [
                token_losses(p.hidden_BUD.flatten(0, 1), head_VD, p.targets_BU.flatten()) for p in predictions
            ]
        if routing is not None:
            routing.add(chosen, batch.tokens_BS)
        counts_LE = stack_counts(stats) + (0 if counts_LE is None else counts_LE)
        _add(sums, batch, losses, data.token_bytes_V.to(device))
        for prediction, loss_N in zip(predictions[1:], losses[1:], strict=True):
            sums.mtp_nats += loss_N.double().sum().item()
            sums.mtp_tokens += int((prediction.targets_BU != IGNORE).sum())
    assert counts_LE is not None
    return {
        "val/loss": sums.nats / sums.tokens,
        "val/bpb": sums.document_nats / math.log(2) / sums.document_bytes,
        "val/mtp_loss": sums.mtp_nats / sums.mtp_tokens if sums.mtp_tokens else None,
        "val/max_violation": max_violation(counts_LE) if counts_LE.numel() else None,
    }


def _add(sums: _Sums, batch: Batch, losses: list[Tensor], token_bytes_V: Tensor) -> None:
    main_N = losses[0].double()
    bytes_N = token_bytes_V[batch.tokens_BS[:, 1:].flatten()]
    sums.nats += main_N.sum().item()
    sums.tokens += len(main_N)
    sums.document_nats += main_N[bytes_N > 0].sum().item()
    sums.document_bytes += int(bytes_N.sum())
