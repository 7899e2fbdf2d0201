"""Schedules: complete, free of dependency violations, and as long as their closed forms say."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek_mini.cost.pipeline.closed_form import bubble
from deepseek_mini.cost.pipeline.orders import SCHEDULES, build_schedule
from deepseek_mini.cost.pipeline.schedule import Kind, Op, Schedule, playing_order
from deepseek_mini.cost.pipeline.simulate import Stages, Timeline, peak_activations, play

ONE_STREAM = ("1f1b", "interleaved", "zb1p")
TWO_STREAMS = ("dualpipe", "dualpipe_v")


def timed(schedule: Schedule, f: float, i: float, w: float, pair: float | None = None) -> Timeline:
    seconds = {"F": f, "I": i, "W": w, "B": i + w}

    def duration(stages: Stages) -> np.ndarray:
        if len(stages) == 2:
            return np.array([f + i + w if pair is None else pair])
        return np.array([seconds[stages[0][0]]])

    return play(schedule, duration)


def bubbles(timeline: Timeline) -> list[float]:
    return [float(timeline.bubble(rank)[0]) for rank in range(len(timeline.ranks))]


@pytest.mark.parametrize("name", SCHEDULES)
@settings(max_examples=25, deadline=None)
@given(half_stages=st.integers(1, 8), extra=st.integers(0, 6))
def test_any_even_number_of_stages_plays_to_the_end(name: str, half_stages: int, extra: int) -> None:
    """Every stage does every micro-batch once, and nothing starts before what it needs has ended."""
    n_stages = 2 * half_stages
    n_micro_batches = {"dualpipe": 4 * half_stages + 2 * extra, "interleaved": half_stages * (1 + extra)}.get(
        name, n_stages + extra
    )
    schedule = build_schedule(name, n_stages, n_micro_batches)
    timeline = timed(schedule, 1.0, 1.3, 0.7)
    ends: dict[Op, float] = {}
    begins: dict[Op, float] = {}
    for intervals in timeline.ranks:
        for interval in intervals:
            for op in interval.step:
                assert op not in ends
                begins[op], ends[op] = float(interval.begin[0]), float(interval.end[0])
    for stage in range(n_stages):
        for micro in range(n_micro_batches):
            backward = Op(Kind.backward, stage, micro)
            whole = backward in ends
            gradient = backward if whole else Op(Kind.input_grad, stage, micro)
            forward = Op(Kind.forward, stage, micro)
            assert begins[gradient] >= ends[forward]
            if not whole:
                assert begins[Op(Kind.weight_grad, stage, micro)] >= ends[gradient]
            if stage:
                assert begins[forward] >= ends[Op(Kind.forward, stage - 1, micro)]
                below = Op(Kind.backward, stage - 1, micro)
                below = below if below in ends else Op(Kind.input_grad, stage - 1, micro)
                assert begins[below] >= ends[gradient]


@pytest.mark.parametrize("name", ONE_STREAM)
@pytest.mark.parametrize(("f", "i", "w"), [(1, 1, 1), (2, 3, 2), (1, 1.5, 0.5)])
@pytest.mark.parametrize(("n_stages", "n_micro_batches"), [(4, 16), (8, 24), (16, 120)])
def test_bubbles_are_those_of_the_closed_forms(
    name: str, f: float, i: float, w: float, n_stages: int, n_micro_batches: int
) -> None:
    found = bubbles(timed(build_schedule(name, n_stages, n_micro_batches), f, i, w))
    assert found == pytest.approx([bubble(name, n_stages, f, i, w)] * len(found))


@pytest.mark.parametrize("name", TWO_STREAMS)
@pytest.mark.parametrize(("f", "i", "w"), [(1, 1, 1), (2, 2, 1), (1, 1, 0.5)])
@pytest.mark.parametrize(("n_stages", "n_micro_batches"), [(4, 16), (8, 24), (16, 120)])
def test_dualpipe_bubbles_are_the_papers_where_forward_and_input_gradient_take_as_long(
    name: str, f: float, i: float, w: float, n_stages: int, n_micro_batches: int
) -> None:
    """Table 2 of V3, (PP / 2 - 1)(F&B + B - 3W): of every rank, or of the worst if overlapping saves time."""
    schedule = build_schedule(name, n_stages, n_micro_batches)
    plain = bubbles(timed(schedule, f, i, w))
    assert plain == pytest.approx([bubble(name, n_stages, f, i, w)] * len(plain))
    overlapped = 0.8 * (f + i + w)
    found = bubbles(timed(schedule, f, i, w, overlapped))
    assert max(found) == pytest.approx(bubble(name, n_stages, f, i, w, overlapped))


@pytest.mark.parametrize(("name", "seconds"), [("1f1b", 45), ("zb1p", 15), ("dualpipe", 14)])
def test_v3s_example_of_sixteen_stages(name: str, seconds: float) -> None:
    """F = W = 1, B = 2, F&B = 3."""
    assert bubbles(timed(build_schedule(name, 16, 120), 1, 1, 1))[0] == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("name", "n_stages", "share"),
    [("1f1b", 16, 0.111), ("interleaved", 32, 0.059), ("zb1p", 16, 0.054), ("dualpipe", 16, 0.050)],
)
def test_shares_of_the_bubble_with_the_traces_times(name: str, n_stages: int, share: float) -> None:
    """16 ranks, 120 micro-batches, one layer per stage: F 8.97, I 14.65, W 8.77, F&B 32.25 ms."""
    f, i, w = 8.97, 14.65, 8.77
    seconds = bubble(name, n_stages, f, i, w, 32.25)
    work = 120 * n_stages / 16 * (f + i + w)
    assert seconds / (seconds + work) == pytest.approx(share, abs=0.0015)


@pytest.mark.parametrize(
    ("name", "expected"), [("1f1b", 16), ("zb1p", 16), ("dualpipe", 17), ("dualpipe_v", 17)]
)
def test_activations_kept_are_the_papers(name: str, expected: int) -> None:
    """Table 2 of V3: PP for 1F1B and ZB1P, PP + 1 for DualPipe."""
    schedule = build_schedule(name, 16, 120)
    assert max(peak_activations(schedule, rank) for rank in range(len(schedule.ranks))) == expected


def test_dualpipe_keeps_two_copies_and_v_one() -> None:
    """Each stage lies on two ranks, or on one of half as many."""
    both = build_schedule("dualpipe", 8, 16)
    folded = build_schedule("dualpipe_v", 8, 8)
    assert [both.stages_of(rank) for rank in range(8)] == [
        [r, 7 - r] if r < 4 else [7 - r, r] for r in range(8)
    ]
    assert [folded.stages_of(rank) for rank in range(4)] == [[rank, 7 - rank] for rank in range(4)]


def test_a_hop_delays_the_next_rank_and_not_its_own() -> None:
    schedule = build_schedule("1f1b", 2, 1)
    timeline = play(schedule, lambda stages: np.ones(1), hop=0.5)
    assert float(timeline.seconds[0]) == pytest.approx(4 + 2 * 0.5)
    assert float(timeline.busy(0)[0]) == pytest.approx(2)


def test_draws_are_played_in_one_pass_as_they_are_one_by_one() -> None:
    schedule = build_schedule("dualpipe", 4, 8)
    speeds = np.array([1.0, 2.0, 0.5])
    together = play(schedule, lambda stages: speeds * len(stages) * (1 + stages[0][1]))
    for index, speed in enumerate(speeds):
        alone = play(schedule, lambda stages, s=speed: np.array([s * len(stages) * (1 + stages[0][1])]))
        assert together.seconds[index] == pytest.approx(float(alone.seconds[0]))


def test_violations_are_found_before_anything_is_timed() -> None:
    good = build_schedule("1f1b", 2, 2)
    first, second = good.ranks
    swapped = replace(good, ranks=[first[::-1], second])
    with pytest.raises(ValueError, match="no rank can go on"):
        playing_order(swapped)
    with pytest.raises(ValueError, match="stage 1 does F of micro-batch 1"):
        playing_order(replace(good, ranks=[first, second[:-1]]))
    with pytest.raises(ValueError, match="done twice"):
        playing_order(replace(good, ranks=[first, [*second, second[0]]]))
    moved = replace(good, ranks=[[*first, second[-1]], second[:-1]])
    with pytest.raises(ValueError, match="several ranks"):
        playing_order(moved)
    together = replace(
        good, n_micro_batches=1, n_stages=1, ranks=[[(Op(Kind.forward, 0, 0), Op(Kind.backward, 0, 0))]]
    )
    with pytest.raises(ValueError, match="no rank can go on"):
        playing_order(together)


@pytest.mark.parametrize(
    ("name", "n_stages", "n_micro_batches", "message"),
    [
        ("dualpipe", 16, 30, "at least 32 micro-batches"),
        ("dualpipe", 15, 32, "even"),
        ("dualpipe", 16, 33, "even"),
        ("dualpipe_v", 16, 15, "at least 16"),
        ("dualpipe_v", 7, 15, "even"),
        ("interleaved", 9, 9, "do not divide"),
        ("interleaved", 8, 6, "do not divide"),
        ("gpipe", 4, 4, "choose one of"),
        ("1f1b", 0, 4, "needs a stage"),
    ],
)
def test_what_a_schedule_needs_is_said(name: str, n_stages: int, n_micro_batches: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_schedule(name, n_stages, n_micro_batches)
