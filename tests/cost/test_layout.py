"""Layers on stages."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek_mini.config import ModelConfig
from deepseek_mini.cost.layout import LAYOUTS, Stage, stages
from deepseek_mini.cost.shape import Shape, shape_of

V3 = shape_of(ModelConfig())


def counts(layout: str) -> list[int]:
    return [stage.n_dense + stage.n_moe for stage in stages(V3, 16, layout)]


def test_candidates_of_v3() -> None:
    assert counts("light_last") == [4] * 15 + [1]
    assert counts("spread") == [4] * 13 + [3] * 3
    assert counts("light_ends") == [3] + [4] * 14 + [2]


def test_dense_layers_come_first_and_head_and_mtp_last() -> None:
    first, *_, last = stages(V3, 16, "light_last")
    assert first == Stage(n_dense=3, n_moe=1)
    assert last == Stage(n_moe=1, n_mtp=1, n_heads=2)


@given(st.sampled_from(LAYOUTS), st.integers(1, 130), st.data())
def test_every_layer_lies_on_one_stage_and_no_stage_is_empty(
    layout: str, layers: int, data: st.DataObject
) -> None:
    n_stages = data.draw(st.integers(1, layers))
    n_dense = data.draw(st.integers(0, layers))
    shape = Shape(8, 10, 1, 1, 8, 8, n_dense_layers=n_dense, n_moe_layers=layers - n_dense, mtp_depth=1)
    held = stages(shape, n_stages, layout)
    assert len(held) == n_stages
    assert sum(stage.n_dense for stage in held) == n_dense
    assert sum(stage.n_moe for stage in held) == layers - n_dense
    assert min(stage.n_dense + stage.n_moe for stage in held) >= 1
    assert [stage.n_heads for stage in held] == [0] * (n_stages - 1) + [2]


def test_more_stages_than_layers_are_refused() -> None:
    with pytest.raises(ValueError, match="62 pipeline stages for 61 layers"):
        stages(V3, 62, "spread")
