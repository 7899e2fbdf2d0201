"""Bytes and seconds on the wire, against figures written out here."""

import itertools

import pytest

from deepseek_mini.cost.communication import (
    all_to_all_bandwidth,
    all_to_all_seconds,
    bytes_per_node,
    expected_nodes,
    hop_seconds,
    zero1_seconds,
)


def test_a_token_of_v3_sends_21728_bytes_to_each_node() -> None:
    sent = bytes_per_node(7168)
    assert sent == {"dispatch": 7168 + 7168 / 128 * 4, "combine": 2 * 7168}
    assert sum(sent.values()) == 21_728


def test_bytes_of_v3_over_both_directions_and_58_layers() -> None:
    """8.8 MB per token, at the 3.5 remote of 4 nodes."""
    assert 2 * 58 * 3.5 * sum(bytes_per_node(7168).values()) == pytest.approx(8.8e6, rel=5e-3)


def test_distinct_nodes_are_those_of_all_choices() -> None:
    """8 experts on 4 nodes, every choice of 3, counted one by one."""
    counts = [len({expert // 2 for expert in choice}) for choice in itertools.combinations(range(8), 3)]
    assert expected_nodes(8, 3, 4) == pytest.approx(sum(counts) / len(counts))


def test_node_limits_of_v3_and_v2() -> None:
    assert expected_nodes(256, 8, 8) == pytest.approx(5.29, abs=0.005)
    assert expected_nodes(256, 8, 8, 4) == pytest.approx(3.63, abs=0.005)
    assert expected_nodes(160, 6, 8) == pytest.approx(4.46, abs=0.005)
    assert expected_nodes(160, 6, 8, 3) == pytest.approx(2.77, abs=0.005)


def test_bandwidth_is_deepeps_by_ep_size() -> None:
    assert all_to_all_bandwidth(64) == (51e9, 50e9)
    assert all_to_all_bandwidth(8) == (153e9, 158e9)
    assert all_to_all_bandwidth(24) == all_to_all_bandwidth(32)
    assert all_to_all_bandwidth(128) == all_to_all_bandwidth(64)


def test_all_to_all_of_a_layer() -> None:
    """4,096 tokens to 4 nodes: 7.1 ms, the forward of the trace's chunk of 4 layers 64 ms with it."""
    seconds = all_to_all_seconds(7168, 4096, 4, 64)
    assert seconds == pytest.approx(4096 * 4 * (7392 / 51e9 + 14336 / 50e9))
    assert 4 * (seconds + 8.97e-3) == pytest.approx(64e-3, rel=0.01)
    assert all_to_all_seconds(7168, 4096, 4, 1) == 0


def test_zero1_sends_parameters_and_gradients_once_each() -> None:
    """V3's dense part on one of 16 stages: 4.25 GB over 128 replicas."""
    assert zero1_seconds(17.1e9 / 16, 128, gbps=1.0) == pytest.approx(4.25, rel=5e-3)
    assert zero1_seconds(1e9, 1) == 0


def test_a_hop_is_one_micro_batch_in_bf16() -> None:
    assert hop_seconds(7168, 4096, 50e9) == 2 * 7168 * 4096 / 50e9
