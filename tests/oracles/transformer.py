"""The whole model on one packed sequence: blocks, logits, MTP modules (V3 Eq. 21-25) and the losses.

Departures of the released model from the paper's text are followed: eh_proj takes [embedding; hidden],
and h^0 is the last block's output before the final norm.
"""

import math
from dataclasses import dataclass, field
from typing import Any

from oracles.attention import attention
from oracles.autodiff import Number
from oracles.layers import Matrix, Parameters, add, cross_entropy, linear, mlp, part, rms_norm
from oracles.moe import moe


@dataclass
class Tally:
    """What the MoE layers of one pass reported, in their order."""

    counts: list[list[int]] = field(default_factory=list)
    balance_losses: list[Number] = field(default_factory=list)
    margin: float = math.inf


@dataclass
class Losses:
    """Sums over one sequence, in nats, and what the MoE layers reported."""

    main: Number
    mtp: list[Number]
    tally: Tally


def block(parameters: Parameters, h: Matrix, c: Any, documents: list[int] | None, tally: Tally) -> Matrix:
    """h + attention(norm(h)), then the same with the feed-forward part; MoE where there is a gate."""
    normed = [rms_norm(parameters["attn_norm.weight"], x) for x in h]
    mixed = attention(part(parameters, "attn."), normed, c, documents)
    h = [add(x, y) for x, y in zip(h, mixed, strict=True)]
    normed = [rms_norm(parameters["ffn_norm.weight"], x) for x in h]
    ffn = part(parameters, "ffn.")
    if "gate.weight" in ffn:
        result = moe(ffn, normed, c)
        tally.counts.append(result.counts)
        tally.balance_losses.append(result.balance_loss)
        tally.margin = min(tally.margin, result.margin)
        outputs = result.outputs
    else:
        outputs = [mlp(ffn, x) for x in normed]
    return [add(x, y) for x, y in zip(h, outputs, strict=True)]


def hidden_states(
    parameters: Parameters, tokens: list[int], c: Any, documents: list[int] | None, tally: Tally
) -> Matrix:
    """Output of the last block, before the final norm."""
    h = [parameters["embed.weight"][token] for token in tokens]
    for i in range(c.n_layers):
        h = block(part(parameters, f"layers.{i}."), h, c, documents, tally)
    return h


def logits(parameters: Parameters, tokens: list[int], c: Any, documents: list[int] | None = None) -> Matrix:
    h = hidden_states(parameters, tokens, c, documents, Tally())
    return [linear(parameters["head.weight"], rms_norm(parameters["norm.weight"], x)) for x in h]


def losses(
    parameters: Parameters, tokens: list[int], documents: list[int], c: Any, document_mask: bool
) -> Losses:
    """Losses over the T tokens that have a successor among the T + 1 given."""
    n_tokens, tally = len(tokens) - 1, Tally()
    seen = documents if document_mask else None
    h = hidden_states(parameters, tokens[:-1], c, seen and seen[:-1], tally)
    main = 0.0
    for i in range(n_tokens):
        normed = rms_norm(parameters["norm.weight"], h[i])
        main = main + cross_entropy(linear(parameters["head.weight"], normed), tokens[i + 1])
    mtp = []
    for k in range(1, c.mtp.depth + 1):
        own = part(parameters, f"mtp.{k - 1}.")
        h = mtp_hidden(parameters, own, h, tokens, documents, k, c, seen, tally)
        total = 0.0
        for i, x in enumerate(h):
            if documents[i + k + 1] == documents[i]:  # Eq. 24
                out = linear(parameters["head.weight"], rms_norm(own["norm.weight"], x))  # Eq. 23
                total = total + cross_entropy(out, tokens[i + k + 1])
        mtp.append(total)
    return Losses(main, mtp, tally)


def mtp_hidden(
    parameters: Parameters,
    own: Parameters,
    h: Matrix,
    tokens: list[int],
    documents: list[int],
    k: int,
    c: Any,
    seen: list[int] | None,
    tally: Tally,
) -> Matrix:
    """h^k of the T - k positions that have a token k + 1 ahead, from h^(k-1) (Eq. 21, 22)."""
    joined = []
    for i in range(len(tokens) - 1 - k):
        embedding = parameters["embed.weight"][tokens[i + k]]
        if documents[i + k] != documents[i]:
            embedding = [0.0] * c.dim
        both = rms_norm(own["enorm.weight"], embedding) + rms_norm(own["hnorm.weight"], h[i])
        joined.append(linear(own["eh_proj.weight"], both))
    return block(part(own, "block."), joined, c, seen and seen[: len(joined)], tally)
