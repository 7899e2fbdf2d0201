"""Hours from others' throughput of the same model, and plans that do not fit."""

from dataclasses import replace

import numpy as np
import pytest

from deepseek_mini.compose import compose
from deepseek_mini.cost.plan import Plan, make_plan, parse_cluster
from deepseek_mini.cost.published import find_evidence, release_spread, steady_from


def plan_for(cluster: str, model: str = "v3_671b", **options: int) -> Plan:
    return make_plan(model, compose([f"model={model}"]).config, parse_cluster(cluster), **options)


def test_h800_stands_on_nvidias_h100_and_never_on_deepseeks_own() -> None:
    evidence = find_evidence(plan_for("h800_2048"))
    assert evidence is not None
    assert (evidence.tokens_per_second, evidence.system, evidence.same_gpu) == (1297, "DGX-H100", False)
    assert "on DGX-H100 with 1,024 GPUs" in evidence.text
    hours = steady_from(evidence, plan_for("h800_2048"), np.ones(1))
    assert float(hours[0]) / 14.8 == pytest.approx(214.2e3, rel=1e-3)


@pytest.mark.parametrize(
    ("cluster", "tokens_per_second", "thousand_hours"),
    [("b200_256", 3328, 83.5), ("gb200_256", 4912, 56.6), ("gb300_256", 6288, 44.2)],
)
def test_the_newest_release_counts(cluster: str, tokens_per_second: float, thousand_hours: float) -> None:
    plan = plan_for(cluster)
    evidence = find_evidence(plan)
    assert evidence is not None
    assert evidence.tokens_per_second == tokens_per_second
    assert evidence.same_gpu
    assert float(steady_from(evidence, plan, np.ones(1))[0]) / 14.8e3 == pytest.approx(
        thousand_hours, rel=2e-3
    )


def test_forced_balance_is_taken_back() -> None:
    """5% more on the fullest GPU, on the 49% of the FLOPs that are routed experts'."""
    plan = plan_for("h800_2048")
    evidence = find_evidence(plan)
    assert evidence is not None
    ratio = steady_from(evidence, plan, np.full(1, 1.05)) / steady_from(evidence, plan, np.ones(1))
    assert float(ratio[0]) == pytest.approx(1 + 0.491 * 0.05, abs=1e-4)


def test_without_mtp_more_tokens_pass() -> None:
    plan = plan_for("gb300_256")
    bare = replace(plan, shape=replace(plan.shape, mtp_depth=0))
    with_mtp, without = find_evidence(plan), find_evidence(bare)
    assert with_mtp is not None
    assert without is not None
    assert without.tokens_per_second / with_mtp.tokens_per_second == pytest.approx(1.0408, abs=1e-4)


def test_nothing_is_made_up_where_nothing_is_published() -> None:
    assert find_evidence(plan_for("a100_2048")) is None
    assert find_evidence(plan_for("h800_2048", "v2_236b", batch_size=9216)) is None


def test_releases_differ_by_a_few_percent() -> None:
    assert 0.01 < release_spread() < 0.1


@pytest.mark.parametrize(
    ("cluster", "options", "message"),
    [
        ("h800_2000", {}, "sequences of a step"),
        ("h800_2040", {}, "GPUs of the cluster by the 16 ranks"),
        ("h800_2048", {"batch_size": 15000}, "15000 does not divide: sequences"),
        ("h800_2048", {"ep": 48}, "--ep"),
        ("h800_2048", {"pp": 62}, "at most 61"),
        ("h800_2048", {"pp": 0}, "--pp=0"),
        ("h800_2048", {"schedule": "gpipe"}, "choose one of"),
        ("h800_2048", {"pp": 15, "schedule": "dualpipe"}, "even number of stages"),
        ("h800_2048", {"tokens": -1.0}, "must be positive"),
        ("h800_2048", {"tokens": float("inf")}, "must be positive"),
        ("h800_2048", {"batch_size": -8}, "--batch"),
        ("h800_2048", {"batch_size": 0}, "--batch=0"),
        ("b900_2048", {}, "unknown device 'b900'"),
        ("h800", {}, "device_count"),
        ("h800_0", {}, "device_count"),
        ("v100_8", {}, "no BF16"),
    ],
)
def test_what_does_not_fit_is_named(cluster: str, options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_for(cluster, **options)
