"""The prior from published runs: what it may see, how wide its bands are, and what it is frozen to."""

import hashlib
import math
from dataclasses import replace

import numpy as np
import pytest

from deepseek_mini.cost import predict as module
from deepseek_mini.cost.backtest import bootstrap, coverage, score_runs, summarise, wilson
from deepseek_mini.cost.predict import conformal_width, fit, hold_out, predict
from deepseek_mini.cost.runs import Run, parse_runs
from deepseek_mini.cost.shape import Shape
from deepseek_mini.cost.tables import DATA, read_table

RUNS, EXCLUDED = parse_runs(read_table("published_runs"))
V3 = next(run for run in RUNS if run.model == "DeepSeek-V3")
DENSE = Shape(4096, 32000, 32, 32, 128, 128, n_dense_layers=32, dense_width=11008)


def made_up(org: str, mfu: float, name: str = "run") -> Run:
    run = Run(f"{org} {name}", org, 2023, DENSE, 2048, 1e12, "A100-80", full_recompute=False, gpu_hours=1.0)
    return replace(run, gpu_hours=run.ideal_hours / mfu)


def test_the_shipped_file_has_33_runs_of_11_organisations() -> None:
    assert len(RUNS) == 33
    assert len({run.org for run in RUNS}) == 11
    assert len(EXCLUDED) == 25
    assert all(row.reason for row in EXCLUDED)


def test_implied_mfu_is_that_of_the_exact_count() -> None:
    """V3: 385 of 989.4 TFLOPS."""
    assert V3.mfu == pytest.approx(0.3894, abs=5e-4)
    assert V3.flops == pytest.approx(249.81e9 * 14.8e12, rel=1e-4)


def test_a_prediction_does_not_depend_on_its_own_organisation() -> None:
    before = predict(V3, RUNS)
    tampered = [replace(r, gpu_hours=1e9) if r.org == "DeepSeek" else r for r in RUNS]
    assert predict(V3, tampered) == before
    assert predict(replace(V3, gpu_hours=None), RUNS) == before
    assert predict(replace(V3, org="deepseek"), RUNS) == before
    assert all(run.org != "DeepSeek" for run in hold_out(V3, RUNS))


def test_the_same_run_under_another_organisation_is_held_out_too() -> None:
    copy = replace(V3, org="Somebody")
    assert V3 not in hold_out(copy, RUNS)


def test_without_runs_the_prior_alone_speaks() -> None:
    """An MFU of 42% for a dense model of 10B parameters on an A100."""
    ten_billion = replace(DENSE, dense_width=DENSE.dense_width + round(3.26e9 / 32 / 3 / 4096))
    run = replace(made_up("a", 0.3), shape=ten_billion)
    assert run.shape.active_parameters == pytest.approx(10e9, rel=1e-3)
    assert run.ideal_hours / fit([]).hours(run) == pytest.approx(math.exp(-0.87), rel=1e-3)


def test_ten_runs_of_one_organisation_do_not_outvote_five_organisations() -> None:
    one = [made_up("loud", 0.20, str(i)) for i in range(10)]
    five = [made_up(org, 0.45) for org in "abcde"]
    mfu = one[0].ideal_hours / fit([*one, *five]).hours(one[0])
    assert mfu > 0.33


def test_full_recomputation_costs_a_third_more() -> None:
    run = made_up("a", 0.4)
    again = replace(run, full_recompute=True)
    model = fit(RUNS)
    assert model.hours(again) / model.hours(run) == pytest.approx(4 / 3)


def test_the_band_covers_new_organisations() -> None:
    """80% bands on made-up organisations that differ as the model assumes: covered as often as promised."""
    rng = np.random.default_rng(0)
    inside = 0
    trials = 25
    for _ in range(trials):
        mfus = 0.4 * np.exp(rng.normal(0, 0.25, 9))
        runs = [made_up(f"org {i}", float(mfu)) for i, mfu in enumerate(mfus)]
        prediction = predict(runs[0], runs)
        hours = runs[0].gpu_hours
        assert hours is not None
        inside += prediction.low <= hours <= prediction.high
    low, high = wilson(inside, trials)
    assert low <= 0.8 <= high or inside / trials > 0.8


def test_the_width_asks_for_four_fifths_of_all_organisations_and_the_new_one() -> None:
    """Of 10 organisations the ninth largest error: 9 of 11 with the new one (8 of 10 would forget it)."""
    runs = [made_up(f"org {i}", 0.4 * math.exp(0.05 * i)) for i in range(10)]
    errors = sorted(
        abs(math.log(fit([r for r in runs if r is not run]).hours(run) / (run.gpu_hours or 1)))
        for run in runs
    )
    assert conformal_width(runs) == pytest.approx(errors[8])


def test_two_other_organisations_are_needed() -> None:
    with pytest.raises(ValueError, match="two other organisations"):
        predict(made_up("a", 0.4), [made_up("a", 0.4), made_up("b", 0.4)])


def test_back_test_on_the_shipped_file_beats_every_baseline() -> None:
    scored, baselines = score_runs(RUNS, RUNS)
    own = summarise(scored)
    for name, baseline in baselines.items():
        theirs = summarise(baseline)
        assert own["mdape"] < theirs["mdape"], name
        assert own["p90"] < theirs["p90"], name
    assert own["mdape"] == pytest.approx(0.169, abs=0.0005)
    assert own["p90"] == pytest.approx(0.392, abs=0.0005)
    assert abs(own["bias"]) < 0.05
    covered = coverage(scored)
    low, high = covered["coverage80_interval"]
    assert low <= 0.8 <= high


def test_baselines_are_what_their_names_say() -> None:
    """On V3: exact FLOPs and 6 x 37.55B at 40% of 989.4 TFLOPS; 27% is the others' median on such GPUs."""
    _, baselines = score_runs([V3], RUNS)
    hours = {name: scored[0].predicted for name, scored in baselines.items()}
    at_40 = 14.8e12 / (0.4 * 989.4e12) / 3600
    assert hours["40% MFU, exact FLOPs"] == pytest.approx(249.81e9 * at_40, rel=1e-4)
    assert hours["40% MFU, 6ND"] == pytest.approx(6 * 37.55e9 * at_40, rel=1e-3)
    like = [run.mfu for run in RUNS if run.peak == V3.peak and run.org != "DeepSeek"]
    assert V3.ideal_hours / hours["median MFU of the GPU generation"] == pytest.approx(np.median(like))


def test_intervals_draw_organisations_and_not_runs_again() -> None:
    """docs/results/backtest.md; a single organisation is the same in every draw."""
    scored, baselines = score_runs(RUNS, RUNS)
    intervals = bootstrap(scored, baselines)
    assert intervals["model"]["mdape_interval"] == pytest.approx([0.143, 0.221], abs=0.001)
    assert intervals["model"]["p90_interval"] == pytest.approx([0.254, 0.525], abs=0.001)
    alone = [s for s in scored if s.org == "EleutherAI"]
    low, high = bootstrap(alone, {})["model"]["mdape_interval"]
    assert low == high == summarise(alone)["mdape"]


def test_v3s_miss_is_as_stated() -> None:
    """78% too much, and outside its own band: V3 was run far better than other MoE models."""
    prediction = predict(V3, RUNS)
    assert prediction.hours / 2.664e6 - 1 == pytest.approx(0.78, abs=0.01)
    assert prediction.low > 2.664e6


def test_constants_are_those_that_were_frozen_before_the_first_score() -> None:
    """To change one is a new model: score it again and say so in docs/results/backtest.md."""
    text = (DATA / "prior_coefficients.csv").read_bytes()
    assert hashlib.md5(text).hexdigest() == "9fec3a3ea9b8910b1a74d839ad51226f"
    assert (module.ORGANISATION_SD, module.RUN_SD, module.DEGREES_OF_FREEDOM) == (0.2, 0.2, 4.0)
    assert (module.REFERENCE_PEAK, module.REFERENCE_ACTIVE, module.REFERENCE_YEAR) == (312e12, 10e9, 2023)


def test_wilson_interval() -> None:
    """29 of 33 at 90%: worked out by hand."""
    z, n, p = 1.6449, 33, 29 / 33
    low, high = wilson(29, 33)
    for edge in (low, high):
        assert abs(p - edge) == pytest.approx(z * math.sqrt(edge * (1 - edge) / n))
    assert wilson(5, 5)[1] == 1.0
