"""The training loss as V3 compares precisions: an exponential moving average, read in the last quarter."""

import statistics
from pathlib import Path

import pytest

from analysis.synthetic import write_run
from deepseek_mini.analysis.comparison import Design, compare
from deepseek_mini.analysis.curves import draw_curves, draw_differences
from deepseek_mini.analysis.figures import run_figures
from deepseek_mini.analysis.groups import group_runs
from deepseek_mini.analysis.runs import SMOOTHED, moving_average, read_run

FP8 = "precision=fp8"


def test_each_mean_keeps_nine_tenths_of_the_one_before():
    assert moving_average([1.0, 2.0, 0.0], 0.9) == pytest.approx([1.0, 1.1, 0.99])
    assert moving_average([], 0.9) == []


def test_the_figure_is_the_mean_over_the_last_quarter_of_the_smoothed_training_loss(tmp_path):
    run = read_run(write_run(tmp_path / "run", loss=3.0))
    losses = run.series("train/main_loss")[1]
    smoothed = [losses[0]]
    for loss in losses[1:]:
        smoothed.append(0.9 * smoothed[-1] + 0.1 * loss)
    assert run.series(SMOOTHED)[1] == pytest.approx(smoothed)
    assert run_figures(run)[SMOOTHED] == pytest.approx(statistics.mean(smoothed[-(len(losses) // 4) :]))


def groups_of(tmp_path: Path, gaps: list[float]) -> list:
    runs = []
    for seed, gap in enumerate(gaps):
        runs.append(read_run(write_run(tmp_path / f"fp32-{seed}", seed=seed, loss=3.0 + 0.1 * seed)))
        runs.append(
            read_run(write_run(tmp_path / f"fp8-{seed}", FP8, seed=seed, loss=3.0 + 0.1 * seed + gap))
        )
    return group_runs(runs)


def judged(groups: list) -> dict:
    return compare(groups, lambda group: groups[0], Design(SMOOTHED))["groups"][1]


def test_precisions_are_judged_by_it_seed_by_seed(tmp_path):
    groups = groups_of(tmp_path, [0.006, 0.007, 0.005])
    row = judged(groups)
    assert row["verdict"].startswith("higher by 0.18%")
    assert len(row["values"]) == 3
    pairs = [(groups[0], groups[1])]
    assert draw_curves(groups, SMOOTHED, tmp_path / "curves.png").exists()
    assert draw_differences(pairs, SMOOTHED, 0.05, tmp_path / "differences.png")


def test_a_single_seed_gives_its_gap_and_no_verdict(tmp_path):
    row = judged(groups_of(tmp_path, [0.3]))
    assert row["shown"] is None
    assert row["verdict"].startswith("+9.")
    assert row["verdict"].endswith(
        "% with seed 0; no verdict: it takes two seeds in common, or two on each side and none in common"
    )
