"""Schedules against V3's own numbers, and the plan of a run."""

import itertools

import pytest

from deepseek_mini.compose import load_config
from deepseek_mini.config import Phase, ScheduleConfig, Shape
from deepseek_mini.optim.schedule import multiplier, plan_run, scaled_bias_rate, total_tokens


@pytest.fixture(scope="module")
def v3_plan():
    return plan_run(load_config(["model=v3_671b"]))


def at(plan, tokens):
    return next(p for p in plan if p.tokens_before >= tokens)


def test_v3_learning_rate_has_the_papers_five_phases(v3_plan):
    assert v3_plan[999].lr == pytest.approx(1.1e-4)
    assert v3_plan[1999].lr == pytest.approx(2.2e-4)
    assert at(v3_plan, 9.99e12).lr == pytest.approx(2.2e-4)
    assert at(v3_plan, 12.15e12).lr == pytest.approx((2.2e-4 + 2.2e-5) / 2, rel=1e-3)
    assert at(v3_plan, 14.4e12).lr == pytest.approx(2.2e-5)
    assert v3_plan[-1].lr == pytest.approx(7.3e-6, rel=1e-3)


def test_v3_batch_ramps_from_3072_to_15360_over_469_billion_tokens(v3_plan):
    assert v3_plan[0].batch_size == 3072
    assert at(v3_plan, 234.5e9).batch_size == pytest.approx(9216, rel=1e-3)
    assert at(v3_plan, 470e9).batch_size == 15360
    assert v3_plan[-1].batch_size == 15360


def test_v3_mtp_weight_and_bias_rate_step_down_where_the_paper_says(v3_plan):
    assert (at(v3_plan, 9.9e12).mtp_weight, at(v3_plan, 10.1e12).mtp_weight) == pytest.approx((0.3, 0.1))
    assert at(v3_plan, 14.2e12).bias_update_rate == 0.001
    assert at(v3_plan, 14.4e12).bias_update_rate == 0.0


def test_v3_takes_its_14_8_trillion_tokens_in_about_240_thousand_steps(v3_plan):
    last = v3_plan[-1]
    assert last.tokens_before < 14.8e12 <= last.tokens_before + last.batch_size * 4096
    assert 235_000 < len(v3_plan) < 250_000


@pytest.mark.parametrize("schedule", ["v3", "cosine", "wsd"])
@pytest.mark.parametrize("steps", [1, 7, 150])
def test_a_run_of_max_steps_has_that_many_and_ends_at_its_total(schedule, steps):
    config = load_config([f"schedule={schedule}", f"trainer.max_steps={steps}"])
    plan = plan_run(config)
    tokens = (plan[-1].first_sequence + plan[-1].batch_size) * config.data.sequence_length
    assert len(plan) == steps
    assert tokens == pytest.approx(total_tokens(config), rel=0.05 if steps > 100 else 1)


def test_steps_consume_the_sequences_one_after_the_other():
    plan = plan_run(load_config([]))
    for before, after in itertools.pairwise(plan):
        assert after.first_sequence == before.first_sequence + before.batch_size
        assert after.step == before.step + 1
    assert plan[0].first_sequence == 0


def test_a_phase_moves_from_the_value_before_it_to_its_own():
    phases = [
        Phase(until=0.5, value=2.0),
        Phase(until=0.75, value=0.0, shape=Shape.linear),
        Phase(until=1.0, value=1.0, shape=Shape.cosine),
    ]
    values = [multiplier(phases, f) for f in (0.0, 0.49, 0.5, 0.625, 0.75, 0.875, 1.0, 1.1)]
    assert values == pytest.approx([2.0, 2.0, 2.0, 1.0, 0.0, 0.5, 1.0, 1.0])


def test_a_phase_may_name_its_own_start():
    ramp = [Phase(until=0.5, value=1.0, shape=Shape.linear, start=0.2), Phase(until=1.0, value=1.0)]
    assert [multiplier(ramp, f) for f in (0.0, 0.25, 0.5)] == pytest.approx([0.2, 0.6, 1.0])


def test_phases_that_do_not_reach_the_end_are_refused():
    with pytest.raises(ValueError, match=r"schedule\.lr.*rise to 1\.0"):
        ScheduleConfig(lr=[Phase(until=0.5)])


def test_the_bias_rate_of_a_short_run_is_faster_and_of_a_long_run_v3s():
    assert scaled_bias_rate(240_000) == 0.001
    assert scaled_bias_rate(100) > scaled_bias_rate(1000) > 0.001


def test_what_a_short_runs_bias_rate_has_above_v3s_falls_with_the_learning_rate():
    plans = plan_run(load_config(["model=tiny", "trainer.max_steps=400"]))
    steady = [plan for plan in plans if plan.step > 20 and plan.bias_update_rate > 0]
    peak = steady[0].bias_update_rate
    for plan in steady:
        above_v3 = (plan.bias_update_rate - 0.001) / (peak - 0.001)
        assert above_v3 == pytest.approx(plan.lr / steady[0].lr)
    assert peak == pytest.approx(scaled_bias_rate(400), rel=0.05)
    assert steady[-1].bias_update_rate < peak / 3
    given = plan_run(load_config(["model=tiny", "trainer.max_steps=400", "model.moe.bias_update_rate=0.01"]))
    assert {plan.bias_update_rate for plan in given} == {0.01, 0.0}
