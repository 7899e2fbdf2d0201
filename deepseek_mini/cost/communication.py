"""Bytes and seconds of the expert all-to-all, of the pipeline's hops, and of the optimizer's collectives.

Symbols: h the model's width, k experts per token, M the nodes that a token may reach.
"""

from math import comb

from deepseek_mini.cost.tables import number, read_table

FP8_TILE = 128
"""Elements that share one FP32 scale (arXiv:2412.19437, section 3.3.2)."""
BF16_BYTES = 2
FABRIC_GBPS = 40.0
"""What ring collectives reach of a 50 GB/s card (arXiv:2505.09343, section 4)."""


def bytes_per_node(dim: int) -> dict[str, float]:
    """Bytes that one token sends to one node, forward: FP8 values with FP32 scales there, BF16 back.

    V3: 7,392 + 14,336 = 21,728. Backward is the same: gradients go out in FP8 and come back in BF16.
    """
    return {"dispatch": dim * (1 + 4 / FP8_TILE), "combine": BF16_BYTES * dim}


def expected_nodes(n_experts: int, top_k: int, n_nodes: int, limit: int | None = None) -> float:
    """Distinct nodes that a token's experts lie on, if every choice of experts is equally likely.

    Experts are spread evenly over nodes. With a `limit`, the experts are drawn from that many nodes, which
    is what node-limited routing leaves of them (V3, 8 of 256 experts on 8 nodes: 5.29, limited to 4: 3.63).
    """
    nodes = n_nodes if limit is None else min(limit, n_nodes)
    per_node = n_experts // n_nodes
    reachable = nodes * per_node
    missed = comb(reachable - per_node, top_k) / comb(reachable, top_k)
    return nodes * (1 - missed)


def all_to_all_bandwidth(expert_parallel: int) -> tuple[float, float]:
    """Bytes/s of dispatch and combine alone, from DeepEP's table by EP size, the next larger one listed.

    The figures are logical: what stays on the sender's own node counts, so all `expected_nodes` do.
    Beyond the largest EP listed, the largest is taken.
    """
    rows = sorted(read_table("all_to_all"), key=lambda row: int(row["expert_parallel"]))
    row = next((row for row in rows if int(row["expert_parallel"]) >= expert_parallel), rows[-1])
    dispatch, combine = number(row, "dispatch_gbps"), number(row, "combine_gbps")
    assert dispatch
    assert combine
    return dispatch * 1e9, combine * 1e9


def all_to_all_seconds(dim: int, tokens: int, nodes: float, expert_parallel: int) -> float:
    """Dispatch and combine of one layer in one direction, with nothing to hide behind."""
    if expert_parallel == 1:
        return 0.0
    sent, (dispatch, combine) = bytes_per_node(dim), all_to_all_bandwidth(expert_parallel)
    return tokens * nodes * (sent["dispatch"] / dispatch + sent["combine"] / combine)


def hop_seconds(dim: int, tokens: int, bandwidth: float) -> float:
    """One micro-batch's BF16 activations from stage to stage."""
    return BF16_BYTES * dim * tokens / bandwidth


def zero1_seconds(parameters: float, replicas: int, gbps: float = FABRIC_GBPS) -> float:
    """Reduce-scatter of gradients and all-gather of parameters, both BF16, over `replicas` (ZeRO-1)."""
    return 2 * BF16_BYTES * parameters * (replicas - 1) / replicas / (gbps * 1e9)
