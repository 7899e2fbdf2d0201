"""Student's t by published tables and by drawing; false positives and power by resampling."""

import math
import random
import statistics

import pytest

from deepseek_mini.analysis.statistics import (
    Difference,
    detectable_shift,
    paired_difference,
    power_of,
    t_cdf,
    t_quantile,
    unpaired_difference,
)

ALPHA, POWER = 0.05, 0.8


@pytest.mark.parametrize(
    ("freedom", "p", "expected"),
    [(1, 0.975, 12.706), (2, 0.975, 4.303), (4, 0.975, 2.776), (9, 0.95, 1.833), (30, 0.995, 2.750)],
)
def test_quantiles_of_t_are_those_of_the_printed_tables(freedom: int, p: float, expected: float) -> None:
    assert t_quantile(p, freedom) == pytest.approx(expected, abs=6e-4)
    assert t_cdf(t_quantile(p, freedom), freedom) == pytest.approx(p, abs=1e-9)


def test_t_with_one_degree_of_freedom_is_cauchy_and_with_many_normal() -> None:
    assert t_cdf(2.0, 1) == pytest.approx(0.5 + math.atan(2.0) / math.pi, abs=1e-12)
    assert t_cdf(1.5, 1e5) == pytest.approx(statistics.NormalDist().cdf(1.5), abs=1e-5)


@pytest.mark.parametrize("freedom", [1, 2, 4.5, 30])
def test_without_a_difference_the_power_is_the_level(freedom: float) -> None:
    assert power_of(0.0, freedom, ALPHA) == pytest.approx(ALPHA, abs=1e-4)


def test_power_agrees_with_drawing() -> None:
    generator, n, shift = random.Random(0), 3, 5.0
    critical, found = t_quantile(1 - ALPHA / 2, n - 1), 0
    for _ in range(4000):
        drawn = [generator.gauss(shift / math.sqrt(n), 1) for _ in range(n)]
        found += abs(statistics.mean(drawn)) > critical * statistics.stdev(drawn) / math.sqrt(n)
    assert power_of(shift, n - 1, ALPHA) == pytest.approx(found / 4000, abs=0.03)


def test_with_many_seeds_the_detectable_difference_is_that_of_a_known_spread() -> None:
    shift = detectable_shift(1e4, ALPHA, POWER)
    assert power_of(shift, 1e4, ALPHA) == pytest.approx(POWER, abs=1e-3)
    assert shift == pytest.approx(1.960 + 0.842, abs=3e-3)


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_null_pairs_of_disjoint_seeds_are_found_different_in_at_most_a_tenth(seeds: int) -> None:
    generator = random.Random(seeds)
    pool = [generator.gauss(3.0, 0.02) for _ in range(40)]
    shown = 0
    for _ in range(1000):
        drawn = generator.sample(pool, 2 * seeds)
        shown += unpaired_difference(drawn[:seeds], drawn[seeds:], ALPHA).shown
    assert shown <= 100


@pytest.mark.parametrize("seeds", [3, 5])
def test_null_pairs_of_equal_seeds_are_found_different_at_the_level(seeds: int) -> None:
    generator = random.Random(seeds)
    shown = sum(
        paired_difference([generator.gauss(0, 0.01) for _ in range(seeds)], ALPHA).shown for _ in range(2000)
    )
    assert 0.03 <= shown / 2000 <= 0.07


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_the_difference_that_a_design_says_it_could_show_is_shown_as_often_as_it_says(seeds: int) -> None:
    """Planted is what one experiment says, by the spread of its own few seeds; found by another like it."""
    generator, shown = random.Random(1), 0

    def experiment(planted: float) -> Difference:
        return paired_difference([generator.gauss(-planted, 0.01) for _ in range(seeds)], ALPHA)

    for _ in range(2000):
        shown += experiment(experiment(0.0).detectable(ALPHA, POWER)).high < 0
    assert shown / 2000 == pytest.approx(POWER, abs=0.03)


def test_the_interval_of_a_hand_worked_example() -> None:
    judged = paired_difference([0.01, 0.03, 0.02], ALPHA)
    reach = 4.3027 * 0.01 / math.sqrt(3)
    assert (judged.mean, judged.low) == pytest.approx((0.02, 0.02 - reach), abs=1e-6)
    assert judged.high == pytest.approx(0.02 + reach, abs=1e-6)
    assert judged.n == 3
    assert not judged.shown


def test_welch_of_a_hand_worked_example() -> None:
    judged = unpaired_difference([3.0, 3.2], [2.9, 3.0, 3.1], ALPHA)
    parts = 0.02 / 2, 0.01 / 3
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / 1 + parts[1] ** 2 / 2)
    assert judged.mean == pytest.approx(-0.1)
    assert judged.high - judged.mean == pytest.approx(t_quantile(0.975, freedom) * math.sqrt(sum(parts)))
    assert judged.method.startswith("unpaired")
