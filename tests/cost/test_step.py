"""A step of V3 from the published trace, against what DeepSeek measured."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from deepseek_mini.compose import compose
from deepseek_mini.cost.breakdown import layer_activation_bytes, rank_memory, step_shares
from deepseek_mini.cost.draws import Triangular, band, central, one_at_a_time, run_priors, sample
from deepseek_mini.cost.layer_profile import read_layer_profile
from deepseek_mini.cost.layout import LAYOUTS, Stage
from deepseek_mini.cost.pipeline.schedule import Kind
from deepseek_mini.cost.plan import Plan, make_plan, parse_cluster
from deepseek_mini.cost.run_model import LOST, RAMP, STEADY, ramp_share, run_hours, steady_hours
from deepseek_mini.cost.shape import shape_of
from deepseek_mini.cost.step import Costs, StepTime, step_seconds, step_time
from deepseek_mini.cost.summary import phases_of

PUBLISHED_STEP = 19.926
TRACE = read_layer_profile()


@cache
def v3_plan() -> Plan:
    return make_plan("v3_671b", compose(["model=v3_671b"]).config, parse_cluster("h800_2048"))


def costs(draws: dict[str, np.ndarray] | None = None, **changes: object) -> Costs:
    plan = replace(v3_plan(), **changes)
    return Costs(plan, TRACE, v3_plan().shape, draws or central(run_priors()))


@cache
def v3_step(layout: str) -> StepTime:
    return step_time(costs(), layout)


def test_the_plan_is_v3s() -> None:
    plan = v3_plan()
    assert (plan.pp, plan.ep, plan.schedule, plan.n_pipelines, plan.n_micro_batches) == (
        16,
        64,
        "dualpipe",
        128,
        120,
    )
    assert plan.ramp_from == 0.2
    assert plan.ramp_tokens == pytest.approx(469e9, rel=1e-3)


def test_the_bracket_over_layouts_and_unknowns_contains_the_published_step() -> None:
    seconds = np.concatenate(
        [step_time(costs(sample(run_priors(), 60)), layout).seconds for layout in LAYOUTS]
    )
    assert seconds.min() < PUBLISHED_STEP < seconds.max()
    central_steps = [float(v3_step(layout).seconds[0]) for layout in LAYOUTS]
    assert min(central_steps) < PUBLISHED_STEP < max(central_steps)


def test_rank_0_does_as_many_operations_as_the_published_phases_imply() -> None:
    """23 forwards, 97 overlapped pairs, 15 weight gradients (arXiv:2505.09343, Table 4)."""
    steps = v3_step("spread").timeline.schedule.ranks[0]
    assert sum(len(step) == 1 and step[0].kind is Kind.forward for step in steps) == 23
    assert sum(len(step) == 2 for step in steps) == 97
    assert sum(step[0].kind is Kind.weight_grad for step in steps) == 15


def test_phases_add_up_to_the_step() -> None:
    for layout in LAYOUTS:
        assert sum(phases_of(v3_step(layout)).values()) == pytest.approx(float(v3_step(layout).seconds[0]))


def test_phases_of_rank_0_lie_as_near_to_the_published_ones_as_is_stated() -> None:
    """docs/results/simulator.md; a phase that moves has to be stated again."""
    phases = phases_of(v3_step("light_ends"))
    stated = {"1F": 0.93, "1B": 2.02, "1W": 0.54, "1F1B": 13.18, "bubble": 1.38, "optimizer": 0.42}
    assert {name: round(seconds, 2) for name, seconds in phases.items()} == stated


def test_a_chunk_of_four_moe_layers_takes_what_the_trace_says() -> None:
    plain = {name: np.ones(1) for name in run_priors()} | {"layout": np.zeros(1)}
    chunk, model = Stage(n_moe=4), costs(plain)
    assert float(model.compute(chunk, Kind.forward)[0]) == pytest.approx(4 * 8.97e-3)
    assert float(model.compute(chunk, Kind.weight_grad)[0]) == pytest.approx(4 * 8.77e-3)
    pair = model.duration([chunk])(((Kind.forward, 0), (Kind.backward, 0)))
    assert float(pair[0]) == pytest.approx(4 * 32.25e-3)
    alone = float(model.all_to_all(chunk, Kind.forward)[0])
    assert float(model.duration([chunk])(((Kind.forward, 0),))[0]) == pytest.approx(4 * 8.97e-3 + alone)
    assert not model.all_to_all(chunk, Kind.weight_grad).any()


def test_a_profile_without_a_pair_exposes_as_much_of_its_communication_as_the_traces_does() -> None:
    """3.3% over compute, as in the published trace; its own pair takes what was timed."""
    plain = {name: np.ones(1) for name in run_priors()} | {"layout": np.zeros(1)}
    measured = replace(costs(plain), profile=replace(TRACE, pair_seconds=None))
    pair = measured.duration([Stage(n_dense=1)])(((Kind.forward, 0), (Kind.backward, 0)))
    compute = measured.compute(Stage(n_dense=1), Kind.forward) + measured.compute(
        Stage(n_dense=1), Kind.backward
    )
    assert float(pair[0]) == pytest.approx(1.033 * float(compute[0]))


def test_dense_layers_do_the_same_products_and_send_nothing() -> None:
    model = costs()
    assert not model.all_to_all(Stage(n_dense=2), Kind.forward).any()
    balanced = replace(model, draws={**model.draws, "imbalance": np.ones(1)})
    dense, moe = (
        float(balanced.compute(stage, Kind.forward)[0]) for stage in (Stage(n_dense=1), Stage(n_moe=1))
    )
    assert dense == pytest.approx(moe)


def test_optimizer_of_two_copies() -> None:
    """Each rank holds two stages; 0.29 s are published, ours is the fullest rank's."""
    assert 0.2 < float(v3_step("light_ends").optimizer[0]) < 0.5


def test_shares_of_a_step_add_up_and_none_is_negative() -> None:
    shares = step_shares(costs(), v3_step("light_ends"))
    assert sum(shares.values()) == pytest.approx(1)
    assert min(shares.values()) >= 0


def test_v3_fits_into_80_gb_on_every_rank() -> None:
    plan = v3_plan()
    for memory in rank_memory(plan, v3_step("light_ends").stages, layer_activation_bytes(plan)):
        assert sum(memory.values()) < 80e9


def test_other_schedules_order_as_they_should() -> None:
    """All play the same work: 1F1B waits most, and only DualPipe hides the all-to-all."""
    seconds = {
        name: float(step_time(costs(schedule=name), "spread").seconds[0])
        for name in ("1f1b", "zb1p", "dualpipe")
    }
    assert seconds["dualpipe"] < seconds["zb1p"] < seconds["1f1b"]


def test_p50_per_trillion_tokens_is_stated() -> None:
    """170K, P10 to P90 164K to 203K, the published 180K inside it: docs/results/simulator.md."""
    draws = sample(run_priors(), 600)
    seconds = step_seconds(costs(draws))
    per_trillion = band(steady_hours(v3_plan(), seconds) / 14.8)
    assert per_trillion["p10"] == pytest.approx(164e3, rel=0.01)
    assert per_trillion["p50"] == pytest.approx(170.5e3, rel=0.01)
    assert per_trillion["p90"] == pytest.approx(203e3, rel=0.01)
    assert per_trillion["p10"] < 180e3 < per_trillion["p90"]


def test_the_published_rate_times_tokens_is_the_published_figure() -> None:
    """180K per trillion is the step of 19.926 s; times 14.8 it is 2,664K: steady state, nothing else."""
    hours = steady_hours(v3_plan(), np.array([PUBLISHED_STEP]))
    assert float(hours[0]) / 14.8 == pytest.approx(180.2e3, rel=1e-3)
    assert float(hours[0]) == pytest.approx(2.664e6, rel=2e-3)


def test_lines_of_the_run() -> None:
    plan = v3_plan()
    draws = {**central(run_priors()), "extension_efficiency": np.ones(1), "goodput": np.full(1, 0.9)}
    run = run_hours(plan, np.array([2.664e6]), draws, ramp=0.01)
    assert list(run.lines) == [
        STEADY, RAMP, "context extension to 32K", "context extension to 128K", "post-training", LOST,
    ]  # fmt: skip
    extension = float(run.lines["context extension to 32K"][0] + run.lines["context extension to 128K"][0])
    assert extension == pytest.approx(76e3, rel=0.01)
    kept = sum(float(hours[0]) for name, hours in run.lines.items() if name != LOST)
    assert float(run.metered[0]) == pytest.approx(kept / 0.9)


def test_the_published_context_extension_lies_inside_its_own_band() -> None:
    draws = sample(run_priors(), 500)
    run = run_hours(v3_plan(), np.full(500, 2.664e6), draws, ramp=0.0)
    extension = band(sum(hours for name, hours in run.lines.items() if name.startswith("context")))
    assert extension["p10"] < 119e3 < extension["p90"]


def test_the_ramp_costs_more_where_the_bubble_is_larger() -> None:
    few, many = costs(), costs(batch_size=30720)
    assert 0 < ramp_share(many, "spread") < ramp_share(few, "spread") < 0.02
    assert ramp_share(costs(ramp_tokens=0.0), "spread") == 0


@pytest.mark.parametrize("schedule", ["dualpipe_v", "interleaved", "zb1p", "1f1b"])
def test_other_schedules_ramp_too(schedule: str) -> None:
    assert 0 < ramp_share(costs(schedule=schedule, batch_size=16384), "spread") < 0.05


def test_triangular_quantiles() -> None:
    triangle = Triangular(0.0, 1.0, 4.0)
    assert triangle.quantile(0.0) == 0.0
    assert triangle.quantile(1.0) == 4.0
    assert triangle.quantile(0.25) == pytest.approx(1.0)
    assert triangle.quantile(np.array([0.5]))[0] == pytest.approx(4 - np.sqrt(0.5 * 4 * 3))
    assert Triangular(2.0, 2.0, 2.0).quantile(0.3) == 2.0


def test_a_tornado_moves_one_unknown_at_a_time() -> None:
    priors = run_priors()
    names, draws = one_at_a_time(priors)
    middle = central(priors)
    for index, name in enumerate(names):
        changed = {
            key for key, values in draws.items() if (values[2 * index : 2 * index + 2] != middle[key]).any()
        }
        assert changed == {name}


def test_another_shape_is_scaled_by_its_flops() -> None:
    """Half of the experts per token: the MLP's products halve, attention stays."""
    config = compose(["model=v3_671b", "model.n_activated_experts=4"]).config
    thin = replace(v3_plan(), shape=shape_of(config.model))
    model = Costs(thin, TRACE, v3_plan().shape, central(run_priors()))
    assert model._attention("forward") == costs()._attention("forward")
    saved = costs()._mlp("forward", moe=True) - model._mlp("forward", moe=True)
    assert saved == pytest.approx(4 / 9 * 3.30e-3)
