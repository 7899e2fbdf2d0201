"""scripts/benchmark.py layers: what one GPU has of a layer, and a profile that the cost model reads."""

import importlib
import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from deepseek_mini.compose import load_config
from deepseek_mini.cost.layer_profile import PARTS, PIECES, read_layer_profile
from deepseek_mini.cost.plan import make_plan, parse_cluster
from deepseek_mini.cost.shape import shape_of
from deepseek_mini.cost.tiers import layer_profile_applies

ROOT = Path(__file__).resolve().parents[1]
SMALL = ["model=tiny", "data.sequence_length=32", "data.batch_size=2", "device=cpu"]
CPU = torch.device("cpu")


@pytest.fixture
def layers(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module("benchmarks.layers")


@pytest.fixture
def pieces(layers: ModuleType) -> ModuleType:
    return importlib.import_module("benchmarks.layer_pieces")


def test_the_profile_is_one_that_the_cost_model_reads_and_does_not_take_for_a_gpu(
    layers: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "layers.json"
    script = importlib.import_module("benchmark")
    words = ["layers", "--shape", "tiny", *SMALL[1:], "precision=fp32", "--profile", str(path), "--json"]
    assert script.main([*words, "--rounds", "2"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["results"]}
    profile, content = read_layer_profile(path), json.loads(path.read_text())
    assert (profile.kind, profile.model, profile.tokens, profile.sequence_length) == (
        "measured", "tiny", 64, 32,
    )  # fmt: skip
    assert content["versions"]["torch"] == torch.__version__
    for piece in PIECES:
        assert set(profile.seconds[piece]) == set(PARTS)
        assert rows[f"layers_{piece}"]["ours"] == pytest.approx(1e3 * sum(profile.seconds[piece].values()))
    assert {"dense_forward", "dense_input_grad", "dense_weight_grad"} <= set(content["milliseconds"])
    assert profile.seconds["attention_weight_grad"]["elementwise"] == 0
    assert profile.seconds["attention_forward"]["core"] > 0
    v3 = load_config(["model=v3_671b"])
    reason = layer_profile_applies(make_plan("v3_671b", v3, parse_cluster("h800_2048")), profile)
    assert reason is not None
    assert "measured on a CPU, 64 tokens, FP32: no evidence for a GPU" in reason


def test_a_gpu_of_v3_has_4_experts_and_8192_rows_for_each(layers: ModuleType) -> None:
    config = load_config(["model=v3_671b"])
    share = layers.choose_share("v3_671b", config, torch.device("cuda"))
    assert (share.tokens, share.expert_parallel, share.n_local_experts) == (4096, 64, 4)
    assert share.counts == [8192] * 4


def test_a_cpu_has_fewer_tokens_of_the_same_layer(layers: ModuleType) -> None:
    share = layers.choose_share("v3_671b", load_config(["model=v3_671b"]), CPU)
    assert (share.tokens, share.n_local_experts) == (128, 4)
    assert share.counts == [256] * 4


def test_rows_that_do_not_divide_are_spread_evenly_and_arrive_mixed(pieces: ModuleType) -> None:
    config = replace(load_config(SMALL).model, n_routed_experts=12, n_expert_groups=4)
    share = pieces.Share(config, 1, 10, 4)
    assert share.counts == [14, 13, 13]
    experts_S = pieces.arriving_experts(share).squeeze(1)
    assert experts_S.bincount().tolist() == share.counts
    assert experts_S.tolist() != sorted(experts_S.tolist())


@pytest.mark.parametrize("name", ["attention", "mlp", "dense"])
def test_the_products_timed_alone_have_all_the_flops_of_the_piece(
    name: str, layers: ModuleType, pieces: ModuleType
) -> None:
    config = load_config(SMALL).model
    share = pieces.Share(config, 2, 32, 1)
    piece = dict(pieces.build_pieces(config))[name](share, CPU, torch.float32)
    expected = layers.piece_flops(shape_of(config), name, share)
    core = expected["input_grad"] - expected["weight_grad"]
    for work, without_core in {
        "forward": expected["forward"] - core / 2,
        "input_grad": expected["input_grad"] - core,
        "weight_grad": expected["weight_grad"],
    }.items():
        with FlopCounterMode(display=False) as counter:
            for product in piece.products[work]:
                product()
        assert counter.get_total_flops() == without_core
    assert (core > 0) == (piece.core is not None) == (name == "attention")


def test_grouped_products_are_the_products_of_each_expert(pieces: ModuleType) -> None:
    counts, generator = [16, 0, 32], torch.Generator().manual_seed(0)
    stack, x, d_y = (torch.randn(*s, generator=generator) for s in ((3, 48, 32), (48, 32), (48, 48)))
    looped, grouped = (
        make(stack, x, d_y, counts) for make in (pieces.looped_products, pieces.grouped_products)
    )
    for work in ("forward", "input_grad"):
        torch.testing.assert_close(grouped[work](), torch.cat(looped[work]()))
    torch.testing.assert_close(grouped["weight_grad"](), torch.stack(looped["weight_grad"]()))


def test_parts_timed_alone_fit_into_their_pass(layers: ModuleType) -> None:
    assert layers.fit(10.0, gemm=5.0, core=2.0) == {"gemm": 5.0, "core": 2.0, "elementwise": 3.0}
    squeezed = layers.fit(6.0, gemm=6.0, core=2.0)
    assert squeezed == {"gemm": 4.5, "core": 1.5, "elementwise": 0.0}


def test_pieces_are_also_built_in_bf16(pieces: ModuleType) -> None:
    config = load_config(SMALL).model
    share = pieces.Share(config, 1, 16, 1)
    for _, build in pieces.build_pieces(config):
        piece = build(share, CPU, torch.bfloat16)
        passes = pieces.Passes(piece.module, piece.inputs)
        passes.forward()
        assert {y.dtype for y in passes.outputs} == {torch.bfloat16}
        passes.backward()


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["precision=fp8"], "FP32 and BF16 only"),
        (["model.dim=128"], "no file of configs/model has these dimensions"),
        (["--profile", "/nowhere/at/all.json"], "--profile /nowhere/at/all.json: No such file"),
    ],
)
def test_what_cannot_be_profiled_exits_2(
    words: list[str], answer: str, layers: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    script = importlib.import_module("benchmark")
    assert script.main(["layers", *SMALL, "--rounds", "1", *words]) == 2
    assert answer in capsys.readouterr().err
