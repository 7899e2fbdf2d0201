"""Held-out losses.

Legend: B rows, S = T + 1 tokens of a row, T positions, U = T - k positions of MTP's depth k, N = B * T.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from deepseek_mini.data import Batch, Data
from deepseek_mini.model.loss import TokenScores, score_tokens
from deepseek_mini.model.mtp import IGNORE
from deepseek_mini.model.transformer import Prediction, Transformer, stack_counts
from deepseek_mini.training.balance import max_violation
from deepseek_mini.training.experts import RoutingCounts, watch_gates


@dataclass(slots=True)
class _Sums:
    nats: float = 0.0
    tokens: int = 0
    document_nats: float = 0.0
    document_bytes: int = 0
    mtp_nats: float = 0.0
    drafts: list[int] = field(default_factory=list)
    """Valid positions of each MTP depth."""
    kept: list[int] = field(default_factory=list)
    """Those of them whose draft greedy speculative decoding would keep."""


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
    `val/mtp_acceptance` is the share of MTP's drafts that greedy speculative decoding would keep after the
    text's own tokens, and `val/mtp_acceptance_2` and so on that of the further depths.
    Nothing is counted towards the balance of training. `routing` counts what each expert is chosen for.
    """
    device = model.head.weight.device
    depth = model.config.mtp.depth
    sums, counts_LE = _Sums(drafts=[0] * depth, kept=[0] * depth), None
    for start in range(0, n_sequences, micro_batch_size):
        batch = data.validation.batch(start, min(micro_batch_size, n_sequences - start)).to(device)
        with autocast, watch_gates(model) as chosen:
            predictions, stats = model.predict(batch.tokens_BS, batch.documents_BS, document_mask)
            head_VD = model.head.weight
            scores = [
                score_tokens(p.hidden_BUD.flatten(0, 1), head_VD, p.targets_BU.flatten()) for p in predictions
            ]
        if routing is not None:
            first_B1 = data.validation.first_documents(start, len(batch.tokens_BS)).to(device).unsqueeze(1)
            routing.add(chosen, batch.tokens_BS, first_B1 + batch.documents_BS)
        counts_LE = stack_counts(stats) + (0 if counts_LE is None else counts_LE)
        _add(sums, batch, scores[0].losses_N, data.token_bytes_V.to(device))
        _add_mtp(sums, predictions, scores)
    assert counts_LE is not None
    return {
        "val/loss": sums.nats / sums.tokens,
        "val/bpb": sums.document_nats / math.log(2) / sums.document_bytes,
        "val/mtp_loss": sums.mtp_nats / sum(sums.drafts) if sum(sums.drafts) else None,
        "val/max_violation": max_violation(counts_LE) if counts_LE.numel() else None,
        **_acceptance(sums),
    }


def _add(sums: _Sums, batch: Batch, losses_N: Tensor, token_bytes_V: Tensor) -> None:
    main_N = losses_N.double()
    bytes_N = token_bytes_V[batch.tokens_BS[:, 1:].flatten()]
    sums.nats += main_N.sum().item()
    sums.tokens += len(main_N)
    sums.document_nats += main_N[bytes_N > 0].sum().item()
    sums.document_bytes += int(bytes_N.sum())


def _add_mtp(sums: _Sums, predictions: list[Prediction], scores: list[TokenScores]) -> None:
    """A draft is kept if it is what the model itself holds most likely there, and so are those before it."""
    best_BT = scores[0].best_N.view_as(predictions[0].targets_BU)
    kept_BU = torch.ones_like(best_BT, dtype=torch.bool)
    for k, (prediction, score) in enumerate(zip(predictions[1:], scores[1:], strict=True), start=1):
        drafts_BU = score.best_N.view_as(prediction.targets_BU)
        kept_BU = kept_BU[:, : drafts_BU.shape[1]] & (drafts_BU == best_BT[:, k:])
        valid_BU = prediction.targets_BU != IGNORE
        sums.mtp_nats += score.losses_N.double().sum().item()
        sums.drafts[k - 1] += int(valid_BU.sum())
        sums.kept[k - 1] += int((kept_BU & valid_BU).sum())


def _acceptance(sums: _Sums) -> dict[str, float | None]:
    shares = [kept / drafts if drafts else None for kept, drafts in zip(sums.kept, sums.drafts, strict=True)]
    further = {f"val/mtp_acceptance_{k}": share for k, share in enumerate(shares[1:], start=2)}
    return {"val/mtp_acceptance": shares[0] if shares else None, **further}
