"""scripts/compare.py on run directories with known curves."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from analysis.synthetic import write_run
from script_modules import ROOT, load_script

compare = load_script("compare")
MHA = "model.attention=mha"
MLA = "model.attention=mla"
SHAPE = ("model.n_heads=4", "model.n_expert_groups=4", "trainer.max_steps=40")


def compare_json(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    assert compare.main([*map(str, arguments), "--json"]) == 0
    out = capsys.readouterr()
    assert out.err == ""
    return json.loads(out.out)


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert compare.main([*map(str, arguments), "--json"]) == 2
    out = capsys.readouterr()
    assert out.out == ""
    return out.err


def write_pair(folder: Path, effects: list[float], *variant: str, **both: Any) -> list[Path]:
    """A baseline and a variant whose loss is off by the effect of each seed."""
    runs = []
    for seed, effect in enumerate(effects):
        start = 3.0 + 0.05 * seed
        runs.append(write_run(folder / f"base-{seed}", seed=seed, loss=start, **both))
        runs.append(write_run(folder / f"variant-{seed}", *variant, seed=seed, loss=start + effect, **both))
    return runs


def test_a_difference_that_all_seeds_share_is_shown_whatever_the_seeds_spread(tmp_path, capsys):
    result = compare_json(capsys, *write_pair(tmp_path, [0.030, 0.031, 0.029], MHA))
    base, variant = result["groups"]
    assert (base["label"], variant["label"]) == ("attention=mla", "attention=mha")
    assert base["verdict"] == "baseline"
    assert variant["shown"] is True
    assert variant["verdict"].startswith("higher by 0.98%")
    judged = variant["differences"]["val/loss"]
    assert judged["mean"] == pytest.approx(0.03)
    assert judged["method"] == "paired by seed"
    assert judged["low"] < 0.03 < judged["high"]
    assert base["deviations"]["val/loss"] == pytest.approx(0.05)
    assert result["settings"] == {
        "model.attention": {"attention=mla": "mla", "attention=mha": "mha"},
    }


def test_where_nothing_is_shown_the_verdict_says_what_could_have_been(tmp_path, capsys):
    result = compare_json(capsys, *write_pair(tmp_path, [0.03, -0.02, 0.01], MHA))
    variant = result["groups"][1]
    assert variant["shown"] is False
    fraction = variant["differences"]["val/loss"]["detectable_fraction"]
    assert variant["verdict"] == (f"no difference shown; this design could have shown {100 * fraction:.2g}%")


def test_figures_without_a_record_are_null_and_others_are_means(tmp_path, capsys):
    runs = write_pair(tmp_path, [0.0, 0.01], MHA, **{"val/mtp_acceptance": None})
    means = compare_json(capsys, *runs)["groups"][1]["means"]
    assert means["val/mtp_acceptance"] is None
    assert means["memory_gib"] is None
    assert means["tokens"] == 40 * 128
    assert means["kv_bytes_per_token"] == 2 * 2 * 8 * 2 * 2  # k and v, 2 heads of 8, 2 layers, 2 bytes
    assert means["val/max_violation"] == 0.25
    assert means["device_hours"] == pytest.approx(40 / 3600)


def test_recorded_acceptance_is_averaged(tmp_path, capsys):
    runs = write_pair(tmp_path, [0.0, 0.01], MHA, **{"val/mtp_acceptance": 0.5})
    assert compare_json(capsys, *runs)["groups"][0]["means"]["val/mtp_acceptance"] == 0.5


def test_missing_seeds_are_named(tmp_path, capsys):
    runs = write_pair(tmp_path, [0.01, 0.01, 0.012], MHA)
    result = compare_json(capsys, *[run for run in runs if run.name != "variant-1"])
    assert result["groups"][1]["missing_seeds"] == [1]
    assert result["groups"][1]["differences"]["val/loss"]["n"] == 2


def test_seeds_that_the_baseline_misses_are_named(tmp_path, capsys, monkeypatch):
    runs = write_pair(tmp_path, [0.01, 0.01, 0.012], MHA)
    left = [run for run in runs if run.name != "base-1"]
    result = compare_json(capsys, *left)
    assert result["groups"][1]["missing_in_baseline"] == [1]
    monkeypatch.setenv("COLUMNS", "200")
    assert compare.main([*map(str, left), "--out", str(tmp_path / "out")]) == 0
    assert "[baseline has no seed 1]" in capsys.readouterr().out


def test_two_seeds_on_each_side_that_share_one_are_told_what_is_missing(tmp_path, capsys):
    runs = [run for run in write_pair(tmp_path, [0.01] * 3, MHA) if run.name not in ("base-2", "variant-0")]
    verdict = compare_json(capsys, *runs)["groups"][1]["verdict"]
    assert "no verdict: it takes two seeds in common" in verdict


def test_a_run_that_has_logged_nothing_stops_no_comparison_of_its_sweep(tmp_path, capsys):
    runs = write_pair(tmp_path / "sweep", [0.01, 0.01], MHA)
    begun = write_run(tmp_path / "sweep" / "variant-2", MHA, seed=2, steps=0)
    result = compare_json(capsys, tmp_path / "sweep")
    assert sum(len(group["runs"]) for group in result["groups"]) == len(runs)
    assert f"{begun} is left out: no step is logged yet" in result["notes"]
    assert "no step is logged yet" in refusal(capsys, tmp_path / "sweep", begun)
    write_run(tmp_path / "other" / "a", steps=0)
    assert "no step is logged yet in any of 1 runs" in refusal(capsys, tmp_path / "other")


def test_single_seeds_get_a_table_and_no_verdict(tmp_path, capsys):
    result = compare_json(capsys, *write_pair(tmp_path, [0.5], MHA))
    variant = result["groups"][1]
    assert variant["shown"] is None
    assert "no verdict" in variant["verdict"]
    assert variant["means"]["val/loss"] == pytest.approx(3.5)


def test_seeds_that_are_disjoint_are_compared_unpaired(tmp_path, capsys):
    runs = [write_run(tmp_path / f"a{s}", seed=s, loss=3 + s / 100) for s in (0, 1)]
    runs += [write_run(tmp_path / f"b{s}", MHA, seed=s, loss=3 + s / 100) for s in (2, 3)]
    result = compare_json(capsys, *runs)
    assert result["groups"][1]["differences"]["val/loss"]["method"] == "unpaired (Welch)"


def test_different_corpora_are_refused_by_name(tmp_path, capsys):
    runs = [write_run(tmp_path / "a"), write_run(tmp_path / "b", MHA, corpus="other")]
    error = refusal(capsys, *runs)
    assert "different corpora" in error
    assert "c0ffee" in error
    assert str(runs[1]) in error


def test_different_token_counts_are_flagged_and_compared_on_request(tmp_path, capsys):
    runs = []
    for seed in (0, 1, 2):
        runs.append(write_run(tmp_path / f"a{seed}", seed=seed, loss=3.0 + seed / 1000))
        longer = {"seed": seed, "loss": 2.9, "steps": 80}
        runs.append(write_run(tmp_path / f"b{seed}", MHA, "trainer.max_steps=80", **longer))
    flagged = compare_json(capsys, *runs)["groups"][1]
    assert flagged["shown"] is None
    assert flagged["verdict"].startswith("not compared: 10,240 tokens against 5,120")
    at_tokens = compare_json(capsys, *runs, "--at", "tokens")
    assert at_tokens["budget"] == 5120
    assert at_tokens["groups"][1]["means"]["val/loss"] == pytest.approx(2.9 + 2 / 40 - 2 / 80)
    assert [group["share_of_runs"] for group in at_tokens["groups"]] == [1.0, 0.5]
    assert compare.main([*map(str, runs), "--at", "tokens", "--out", str(tmp_path / "out")]) == 0
    page = " ".join((tmp_path / "out/comparison.md").read_text().split())
    assert "[unfair: read at 50% of its runs and 100% of the baseline's]" in page
    assert "trainer.max_flops plans runs that end at equal FLOPs" in page
    capsys.readouterr()
    at_flops = compare_json(capsys, *runs, "--at", "flops")
    cheaper = at_flops["groups"][1]["means"]
    assert (
        cheaper["val/loss"] < at_tokens["groups"][1]["means"]["val/loss"]
    )  # mha has fewer FLOPs per token here
    at_seconds = compare_json(capsys, *runs, "--at", "seconds")
    assert at_seconds["budget"] == pytest.approx(40.0)


def test_a_run_that_stopped_early_is_left_out_by_name(tmp_path, capsys):
    runs = write_pair(tmp_path, [0.01, 0.01], MHA)
    runs.append(write_run(tmp_path / "base-2", seed=2, steps=16, reason="non_finite"))
    result = compare_json(capsys, *runs)
    assert result["groups"][0]["seeds"] == [0, 1]
    assert any("base-2: non_finite" in note for note in result["notes"])
    assert any("seed 2 is left out" in note for note in result["notes"])


def test_tokenizers_that_differ_are_judged_by_bits_per_byte(tmp_path, capsys):
    result = compare_json(capsys, *write_pair(tmp_path, [0.01, 0.011], "model.vocab_size=300"))
    assert result["metric"] == "val/bpb"
    assert any("tokenizers differ" in note for note in result["notes"])


def test_a_run_that_repeats_another_counts_once_and_is_refused_if_its_losses_differ(tmp_path, capsys):
    """As the baseline that ablate_attention has at matched parameters and again at a matched cache."""
    run, copy = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    other = write_run(tmp_path / "c", MHA)
    assert len(compare_json(capsys, run, run, other)["groups"][0]["runs"]) == 1
    result = compare_json(capsys, run, copy, other)
    assert result["groups"][0]["runs"] == [str(run)]
    assert f"{copy} repeats {run} to the last digit: counted once" in result["notes"]
    differs = write_run(tmp_path / "d", loss=2.9)
    assert "same settings, seed and code, and not the same losses" in refusal(capsys, run, differs)


def test_two_versions_of_the_code_are_two_groups(tmp_path, capsys):
    runs = []
    for seed in (0, 1):
        runs += [
            write_run(tmp_path / f"a{seed}", seed=seed),
            write_run(tmp_path / f"b{seed}", seed=seed, loss=2.9),
        ]
        path = runs[-1] / "environment.json"
        path.write_text(path.read_text().replace("0" * 40, "abcdef1" + "0" * 33))
    labels = [group["label"] for group in compare_json(capsys, *runs)["groups"]]
    assert labels == ["code 0000000", "code abcdef1"]


def test_a_folder_stands_for_its_runs_in_the_order_of_their_starts(tmp_path, capsys):
    write_pair(tmp_path / "runs", [0.01, 0.012], MHA)
    result = compare_json(capsys, tmp_path / "runs")
    assert sorted(len(group["runs"]) for group in result["groups"]) == [2, 2]


def test_intervals_widen_with_the_number_of_variants(tmp_path, capsys):
    effects = [0.02, 0.025, 0.03]
    runs = write_pair(tmp_path, effects, MHA)
    alone = compare_json(capsys, *runs)["groups"][1]["differences"]["val/loss"]
    runs += [
        write_run(tmp_path / f"c{s}", "model.attention=mqa", seed=s, loss=3.0 + s / 20) for s in range(3)
    ]
    together = compare_json(capsys, *runs)["groups"][1]["differences"]["val/loss"]
    assert together["low"] < alone["low"]
    assert together["high"] > alone["high"]


def test_runs_that_have_not_been_evaluated_yet_are_named_and_drawn(tmp_path, capsys):
    runs = [write_run(tmp_path / "a", steps=4), write_run(tmp_path / "b", MHA, steps=4)]
    for at in ("end", "tokens"):
        result = compare_json(capsys, *runs, "--at", at, "--out", tmp_path / "out")
        assert result["groups"][1]["means"]["val/loss"] is None
        assert "no verdict" in result["groups"][1]["verdict"]
        assert result["plots"] == ["curves.png"]


def test_runs_that_are_the_same_to_the_last_digit_are_called_so(tmp_path, capsys):
    result = compare_json(capsys, *write_pair(tmp_path, [0.0, 0.0], "trainer.micro_batch_size=1"))
    assert result["groups"][1]["verdict"] == "the same to the last digit in every seed"


def write_ladder(folder: Path, seeds: int) -> list[Path]:
    """Three sizes of a baseline, and of a variant that is 2% worse at each."""
    generator, runs = random.Random(0), []
    for name, factor in (("mla", 1.0), ("mha", 1.02)):
        for size, scale in enumerate((0.5, 1, 2)):
            for seed in range(seeds):
                loss = 4 * 0.85**size * factor + generator.gauss(0, 0.002)
                keys = (f"model.attention={name}", f"scale={scale}", "trainer.max_steps=64")
                where = folder / f"{name}{size}-{seed}"
                runs.append(write_run(where, *keys, seed=seed, loss=loss, steps=round(64 * scale**2)))
    return runs


def test_a_ladder_is_found_fitted_and_judged_by_its_trend(tmp_path, capsys):
    runs = write_ladder(tmp_path, seeds=2)
    result = compare_json(capsys, *runs, "--out", tmp_path / "out")
    scaling = result["scaling"]
    assert list(scaling["fits"]) == ["attention=mla", "attention=mha"]
    fit = scaling["fits"]["attention=mla"]
    assert fit["exponent_low"] < fit["exponent"] < fit["exponent_high"]
    assert 0.03 < fit["exponent"] < 0.11
    (trend,) = scaling["trends"].values()
    assert list(scaling["trends"]) == ["attention=mha"]
    assert len(trend["fractions"]) == 6
    assert trend["at_largest"]["mean"] == pytest.approx(0.02, abs=0.003)
    assert trend["at_largest"]["shown"]
    assert not trend["per_tenfold"]["shown"]
    assert result["plots"] == ["curves.png", "differences.png", "scaling.png"]
    for name in result["plots"]:
        assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "out" / "comparison.md").read_text()
    assert "attention=mha: by the trend over sizes +2.0" in page
    assert "- Loss against compute: a straight line in logarithms" in page
    assert "- Trend: a straight line through the differences" in page
    assert result["groups"][0]["label"] == "attention=mla, scale=0.5"
    one_seed = [run for run in runs if run.name.endswith("-0")]
    (trend,) = compare_json(capsys, *one_seed)["scaling"]["trends"].values()
    assert len(trend["fractions"]) == 3
    named = compare_json(capsys, *runs, "--family", "model.attention")
    assert named["scaling"] == scaling


def test_long_labels_name_only_what_differs_from_the_first(tmp_path, capsys):
    changes = ((), (MHA,), ("model.moe.balance=none",), ("model.mtp.loss_weight=0.25", "optimizer.beta2=0.9"))
    runs = [write_run(tmp_path / f"run-{i}", *words) for i, words in enumerate(changes)]
    labels = [group["label"] for group in compare_json(capsys, *runs)["groups"]]
    named = ["attention=mha", "balance=none", "loss_weight=0.25, beta2=0.9"]
    assert labels == ["the first settings", *named]


def test_sizes_of_a_ladder_are_not_compared_with_each_other(tmp_path, capsys):
    runs = [run for run in write_ladder(tmp_path, seeds=2) if run.name.startswith("mla")]
    result = compare_json(capsys, *runs)
    assert [group["baseline"] for group in result["groups"]] == [None] * 3
    assert list(result["scaling"]["fits"]) == ["all runs"]


def test_without_json_tables_verdicts_and_a_page_are_written(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    runs = write_pair(tmp_path, [0.030, 0.031, 0.029], MHA)
    assert compare.main([*map(str, runs), "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "attention=mha against attention=mla: higher by 0.98%" in shown
    assert "paired by seed" in shown
    assert max(map(len, shown.replace(str(tmp_path), "").splitlines())) <= 80
    page = (tmp_path / "out" / "comparison.md").read_text()
    assert page.startswith("# Comparison\n")
    assert "| attention=mha | 0,1,2 |" in page
    assert "Corpus c0ffee" in page


def test_a_page_has_question_commands_pictures_and_provenance(tmp_path, capsys):
    runs = []
    for shared in (1, 0):
        for seed in range(3):
            keys = ("experiment=ablate_shared_experts", f"model.n_shared_experts={shared}")
            loss = 3.0 + seed / 1000
            runs.append(write_run(tmp_path / f"{shared}-{seed}", *keys, *SHAPE, seed=seed, loss=loss))
            words = [*keys, f"seed={seed}", "trainer.max_steps=40"]
            (runs[-1] / "overrides.txt").write_text("\n".join(words))
    page = tmp_path / "docs" / "shared.md"
    words = [*map(str, runs), "--at", "tokens", "--page", str(page), "--note", "one thread each", "--json"]
    assert compare.main(words) == 0
    assert json.loads(capsys.readouterr().out)["page"] == str(page)
    text = page.read_text()
    assert text.startswith("# Does an expert that sees every token help? Without it")
    assert "At equal FLOPs instead: trainer.max_steps=null" in text
    assert "    python train.py -m experiment=ablate_shared_experts trainer.max_steps=40\n" in text
    assert f" --at tokens --page {page}\n" in text
    assert "- one thread each\n" in text
    assert "6 runs, 40 to 40 seconds each" in text
    assert "can show" in text
    for name in ("shared_curves.png", "shared_differences.png"):
        assert f"({name})" in text
        assert (page.parent / name).read_bytes().startswith(b"\x89PNG")


def test_runs_that_no_one_command_makes_have_none(tmp_path, capsys):
    runs = [write_run(tmp_path / "a", MLA, seed=0), write_run(tmp_path / "b", MHA, seed=1)]
    compare_json(capsys, *runs, "--out", tmp_path / "out")
    assert "train.py" not in (tmp_path / "out/comparison.md").read_text()


def test_runs_of_several_experiments_have_a_command_each_and_the_first_ones_question(tmp_path, capsys):
    gap = [
        write_run(
            tmp_path / f"{precision}-{seed}", "experiment=fp8_loss_gap", f"precision={precision}", seed=seed
        )
        for precision in ("auto", "fp8")
        for seed in range(3)
    ]
    floor = write_run(tmp_path / "floor", "experiment=fp8_floor")
    compare_json(capsys, *gap, floor, "--out", tmp_path / "out")
    text = (tmp_path / "out/comparison.md").read_text()
    assert text.startswith("# How far does FP8 move the training loss?")
    assert "    python train.py -m experiment=fp8_loss_gap\n" in text
    assert "    python train.py experiment=fp8_floor seed=0\n" in text


def test_other_figures_that_differ_are_named(tmp_path, capsys):
    runs = write_pair(tmp_path, [0.001, -0.001, 0.0], MHA, "model.moe.balance=none")
    for run in runs[1::2]:
        text = (run / "metrics.jsonl").read_text()
        (run / "metrics.jsonl").write_text(
            text.replace('"val/max_violation": 0.25', '"val/max_violation": 2.25')
        )
    compare_json(capsys, *runs, "--out", tmp_path / "out")
    page = " ".join((tmp_path / "out/comparison.md").read_text().split())
    assert "MaxVio, validation set is higher by 2 (2 to 2)" in page
    assert "stands out among 2 differences, without a correction for that number" in page
    assert "each has a chance of 5%" in page


def test_no_more_than_a_tenth_of_null_pairs_of_runs_are_shown(tmp_path):
    """Disjoint seeds and a setting without an effect, through the whole comparison."""
    from deepseek_mini.analysis.comparison import Design
    from deepseek_mini.analysis.comparison import compare as judge
    from deepseek_mini.analysis.groups import Group, label_groups
    from deepseek_mini.analysis.runs import read_run

    generator, sides = random.Random(0), []
    for name in ("mla", "mha"):
        paths = [
            write_run(
                tmp_path / f"{name}{i}", f"model.attention={name}", seed=i, loss=generator.gauss(3, 0.02)
            )
            for i in range(16)
        ]
        sides.append([read_run(path) for path in paths])
    shown = 0
    for _ in range(60):
        seeds = generator.sample(range(16), 6)
        groups = [
            Group({seed: side[seed] for seed in part})
            for side, part in zip(sides, (seeds[:3], seeds[3:]), strict=True)
        ]
        label_groups(groups)
        result = judge(groups, lambda group, base=groups[0]: base, Design())
        shown += result["groups"][1]["shown"]
    assert shown <= 6


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: [folder / "nowhere"], "nowhere: no such folder"),
        (lambda folder: [folder], "no run is in this folder"),
        (lambda folder: [write_run(folder / "a"), "--baseline", "b"], "--baseline b is not one of the runs"),
        (lambda folder: [write_run(folder / "a"), "--family", "attention"], "--family attention: no such"),
        (lambda folder: [write_run(folder / "a", steps=0)], "no step is logged yet"),
        (lambda folder: [write_run(folder / "a"), "--alpha", "2"], "--alpha 2.0 must lie"),
    ],
)
def test_bad_input_exits_2_with_one_line(tmp_path, capsys, make, message):
    error = refusal(capsys, *make(tmp_path))
    assert message in error
    assert error.count("\n") == 1


def test_a_damaged_file_is_named(tmp_path, capsys):
    run = write_run(tmp_path / "a")
    (run / "metrics.jsonl").write_text('{"step": 1, "tokens": 2}\nnonsense\n{"step": 3, "tokens": 4}\n')
    assert f"{run / 'metrics.jsonl'}: line 2" in refusal(capsys, run)


def test_the_analysis_is_imported_by_no_part_of_training() -> None:
    package = ROOT / "deepseek_mini"
    others = [path for path in package.rglob("*.py") if path.parent.name != "analysis"]
    assert not [path for path in others if "deepseek_mini.analysis" in path.read_text()]


@pytest.mark.slow
def test_half_the_learning_rate_is_found_in_real_runs(tmp_path, capsys):
    from deepseek_mini.compose import load_config
    from deepseek_mini.training.trainer import run
    from small_run import SMALL, merge, write_corpus

    text = [
        f"data.path='{write_corpus(tmp_path / 'corpus')}/*.txt'",
        f"data.cache_dir='{tmp_path / 'cache'}'",
    ]
    paths = []
    for seed in range(3):
        for rate in (2e-3, 1e-3):
            keys = (f"seed={seed}", f"optimizer.lr={rate}", "trainer.max_steps=40", "trainer.save_every=40")
            paths.append(tmp_path / f"{rate}-{seed}")
            assert run(load_config(merge([*SMALL, *text], keys)), paths[-1], list(keys)) == 0
    capsys.readouterr()
    slower = compare_json(capsys, *paths)["groups"][1]
    assert slower["label"] == "lr=0.001"
    assert slower["shown"] is True
    assert slower["verdict"].startswith("higher by")
