"""The figures of the experts, against values worked out by hand."""

import math

import numpy as np
import pytest

from analysis.synthetic import write_experts, write_run
from deepseek_mini import run_files
from deepseek_mini.analysis.experts import Routing, Series, layer_names, read_experts, read_routing
from deepseek_mini.analysis.runs import read_run


def series(*layers: list[int]) -> Series:
    return Series(np.array([100]), np.array([layers], dtype=float))


def routing(together: list[list[int]], kinds: list[list[int]]) -> Routing:
    """One layer; `kinds` are a row for each kind."""
    return Routing(["layer 1"], 1, ["a", "b"], np.array([together]), np.array(kinds)[:, None, :])


def test_figures_of_a_load_worked_by_hand() -> None:
    uneven = series([4, 0, 2, 2], [1, 1, 1, 1])
    assert uneven.load_TLE[0, 0].tolist() == [2, 0, 1, 1]
    assert uneven.violation_TL.tolist() == [[1, 0]]
    assert uneven.dead_TL.tolist() == [[1, 0]]
    entropy = -(0.5 * math.log(0.5) + 2 * 0.25 * math.log(0.25)) / math.log(4)
    assert uneven.entropy_TL[0] == pytest.approx([entropy, 1.0])


def test_experts_that_are_chosen_independently_have_no_lift() -> None:
    even = routing(
        [[60, 20, 20, 20], [20, 60, 20, 20], [20, 20, 60, 20], [20, 20, 20, 60]], [[30] * 4, [30] * 4]
    )
    off_diagonal = even.lift_LEE[0][~np.eye(4, dtype=bool)]
    assert off_diagonal == pytest.approx(1.0)
    assert np.isnan(np.diagonal(even.lift_LEE[0])).all()
    assert even.kind_lift_LEK == pytest.approx(1.0)
    assert even.information_L == pytest.approx([0.0])


def test_partners_have_a_lift_and_strangers_none() -> None:
    partners = routing([[50, 50, 0, 0], [50, 50, 0, 0], [0, 0, 50, 50], [0, 0, 50, 50]], [[25] * 4, [25] * 4])
    lift = partners.lift_LEE[0]
    assert lift[0, 1] == lift[2, 3] == pytest.approx(3.0)
    assert lift[0, 2] == 0


def test_an_expert_of_one_kind_tells_it_whole() -> None:
    sorted_out = routing([[5000, 0], [0, 5000]], [[5000, 0], [0, 5000]])
    assert sorted_out.kind_lift_LEK[0].tolist() == [[2, 0], [0, 2]]
    assert sorted_out.information_L == pytest.approx([1.0], abs=1e-3)


def test_chance_is_not_taken_for_specialisation() -> None:
    generator = np.random.default_rng(0)
    kinds = generator.multinomial(400, [1 / 64] * 64).reshape(4, 1, 16)
    drawn = Routing(["layer 1"], 1, list("abcd"), np.zeros((1, 16, 16)), kinds)
    assert drawn.information_L[0] < 0.03


def test_layers_are_numbered_as_in_the_checkpoint_and_mtp_is_named(tmp_path) -> None:
    run = read_run(
        write_run(tmp_path / "run", "model.n_layers=4", "model.n_dense_layers=2", "model.mtp.depth=2")
    )
    assert layer_names(run) == ["layer 2", "layer 3", "MTP 1", "MTP 2"]


def test_the_last_row_of_a_step_counts(tmp_path) -> None:
    path = write_run(tmp_path / "run", "model.n_dense_layers=1")
    write_experts(path)
    lines = (path / run_files.EXPERTS).read_text().splitlines()
    stale = lines[-1].replace('"tokens": 5120', '"tokens": 1')
    (path / run_files.EXPERTS).write_text("\n".join([*lines[:-1], stale, *lines[-2:]]) + "\n")
    records = read_experts(read_run(path))
    assert records is not None
    assert records.batch.tokens_T.tolist() == [step * 128 for step in range(4, 41, 4)]
    assert records.validation is not None
    assert len(records.validation.tokens_T) == 5
    assert records.drift_TL is not None
    assert records.drift_TL[3] == pytest.approx(4 * np.abs(np.arange(8) - 3).mean() / 1000)


@pytest.mark.parametrize("name", [run_files.EXPERTS, run_files.ROUTING])
def test_a_file_that_does_not_fit_is_named(tmp_path, name) -> None:
    path = write_run(tmp_path / "run", "model.n_dense_layers=1")
    write_experts(path, n_layers=3)
    (path / run_files.ROUTING).write_bytes(b"nonsense")
    read = read_experts if name == run_files.EXPERTS else read_routing
    with pytest.raises(ValueError, match=name):
        read(read_run(path))
