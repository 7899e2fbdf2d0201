import math
import random

import pytest

from deepseek_mini.analysis.scaling import fit_line, fit_scaling, fit_trend, is_ladder

FLOPS = [1e12, 4e12, 1.6e13, 6.4e13]


def test_an_exact_power_law_gives_its_exponent_and_no_uncertainty() -> None:
    fit = fit_scaling(FLOPS, [30 * c**-0.08 for c in FLOPS], alpha=0.05)
    assert fit["exponent"] == pytest.approx(0.08)
    assert fit["exponent_high"] - fit["exponent_low"] < 1e-6
    assert fit["at_ten_times"]["loss"] == pytest.approx(30 * 6.4e14**-0.08)


def test_the_interval_of_the_exponent_covers_it_as_often_as_stated() -> None:
    generator, covered = random.Random(0), 0
    for _ in range(1000):
        losses = [30 * c**-0.08 * math.exp(generator.gauss(0, 0.01)) for c in FLOPS]
        fit = fit_scaling(FLOPS, losses, alpha=0.1)
        covered += fit["exponent_low"] <= 0.08 <= fit["exponent_high"]
    assert covered / 1000 == pytest.approx(0.9, abs=0.03)


def test_a_new_size_is_less_certain_than_the_line_and_more_so_further_away() -> None:
    line = fit_line([0, 1, 2, 3], [0.0, 1.1, 1.9, 3.0])
    assert line.reach(1.5, 0.05) < line.reach(6, 0.05) < line.reach(6, 0.05, new_point=True)


def test_a_trend_is_told_from_none() -> None:
    falling = fit_trend(FLOPS, [0.01, 0.004, -0.002, -0.008], alpha=0.05)
    assert falling["per_tenfold"]["shown"]
    assert falling["per_tenfold"]["mean"] == pytest.approx(-0.006 / math.log10(4))
    assert falling["at_largest"]["mean"] == pytest.approx(-0.008)
    assert falling["at_largest"]["shown"]
    none = fit_trend(FLOPS, [0.01, -0.01, 0.012, -0.008], alpha=0.05)
    assert not none["per_tenfold"]["shown"]
    assert not none["at_largest"]["shown"]


def test_variants_without_an_effect_show_a_trend_or_a_level_at_the_stated_rate() -> None:
    generator, shown = random.Random(1), [0, 0]
    for _ in range(1000):
        trend = fit_trend(FLOPS * 3, [generator.gauss(0, 0.01) for _ in range(12)], alpha=0.05)
        shown[0] += trend["per_tenfold"]["shown"]
        shown[1] += trend["at_largest"]["shown"]
    assert [count / 1000 for count in shown] == pytest.approx([0.05, 0.05], abs=0.025)


def test_sizes_that_hardly_differ_are_no_ladder() -> None:
    assert not is_ladder([1.0, 1.04, 1.1])
    assert not is_ladder([1.0, 10.0])
    assert is_ladder([1.0, 1.5, 2.0])
