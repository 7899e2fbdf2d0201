"""The benchmark of the kernels, with small shapes in Triton's interpreter and a clock that is not one."""

import importlib
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from deepseek_mini_kernels import launch, roofline
from deepseek_mini_kernels.configs import PRODUCTION
from kernel_helpers import DEVICE, HAS_TRITON, INTERPRETED

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
OURS, THEIRS = 2e-3, 3e-3
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed")


@pytest.fixture(autouse=True)
def scripts_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))


@pytest.fixture(autouse=True)
def mended_interpreter() -> None:
    if HAS_TRITON and INTERPRETED:
        import triton_interpreter

        triton_interpreter.mend()


@pytest.fixture
def kernels() -> ModuleType:
    return importlib.import_module("benchmarks.kernels")


@pytest.fixture
def cases() -> ModuleType:
    return importlib.import_module("benchmarks.kernel_cases")


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of the configurations that have run."""
    names, load = set(), launch.load
    monkeypatch.setattr(launch, "load", lambda config: (names.add(config.name), load(config))[1])
    return names


def builders(cases: ModuleType) -> dict[str, Callable]:
    return {
        "quantize_activation": cases.rows,
        "quantize_columns": cases.columns,
        "quantize_rows_and_columns": cases.rows_and_columns,
        "requantize_columns": cases.stored_columns,
        "quantize_weight_and_transpose": cases.weight,
        "quantize_weight": lambda n, k: cases.weight(n, k, transpose=False),
        "block_scaled_matmul": cases.product,
        "block_scaled_matmul, tiles": lambda m, n, k: cases.product(m, n, k, tiles=True),
        "grouped_matmul": cases.expert_product,
        "grouped_wgrad": cases.expert_wgrad,
        "swiglu_quantize": cases.swiglu,
        "swiglu_quantize_columns": lambda s, i: cases.swiglu_columns(s, i, e=2),
        "route": cases.router,
    }


def sizes_of(case: Any) -> dict[str, int]:
    return {name.lower(): int(size) for name, size in re.findall(r"\b([A-Z]) (\d+)", case.work.shape)}


def small(case: Any, cases: ModuleType) -> Any:
    """The same kernel in a shape that takes the same configuration, two experts instead of 32."""
    sizes = sizes_of(case)
    experts = sizes.get("e", 1) if "s" in sizes else 1
    shrunk = {name: shrink(size) for name, size in sizes.items()}
    if experts > 1:
        shrunk |= {"e": 2, "s": 2 * shrink(sizes["s"] // experts)}
    return builders(cases)[case.work.kernel](**shrunk)


def shrink(size: int) -> int:
    """At most 64 stays at most 64, and a size keeps its remainder of 128."""
    return size if size <= 64 else 128 + size % 128


def clock(works: list) -> Callable[[Callable[[], object]], float]:
    """A time for each work. The first is a kernel, which ran before; the others are peers, and run."""

    def timer(work: Callable[[], object]) -> float:
        works.append(work)
        if len(works) == 1:
            return OURS
        work()
        return THEIRS

    return timer


@needs_triton
def test_all_kernels_agree_with_the_reference_and_all_production_configurations_run(
    kernels, cases, launched
) -> None:
    for case in cases.CASES:
        one = small(case, cases)
        results = kernels.compare(one, cases.Draw(torch.device(DEVICE)), clock([]), lambda text: None)
        floor, *peers = results
        assert floor.name == f"kernels_{one.work.kernel}"
        assert floor.unit == f"us, {one.work.shape}"
        assert floor.peer_name == roofline.FLOOR
        assert floor.ours == pytest.approx(1e6 * OURS)
        assert floor.peer == pytest.approx(1e6 * one.work.floors[one.work.bound])
        assert floor.ratio == pytest.approx(floor.peer / floor.ours)
        assert all(peer.ours == floor.ours and peer.peer in (None, 1e6 * THEIRS) for peer in peers)
    assert launched == set(PRODUCTION)


def test_every_row_of_the_table_of_floors_is_timed_in_its_shape(cases) -> None:
    assert tuple(case.work for case in cases.OF_V3) == roofline.V3
    for case in cases.CASES:
        assert builders(cases)[case.work.kernel](**sizes_of(case)).work == case.work


@needs_triton
def test_a_wrong_result_ends_the_benchmark_before_the_clock_starts(kernels, cases, monkeypatch) -> None:
    quantize = importlib.import_module("deepseek_mini_kernels.quantize.triton")
    right = quantize.quantize_activation

    def wrong(*args: Any) -> tuple[torch.Tensor, torch.Tensor]:
        q, scale = right(*args)
        return q, scale * (1 + 1e-6)

    monkeypatch.setattr(quantize, "quantize_activation", wrong)
    works: list = []
    with pytest.raises(
        RuntimeError, match=r"quantize_activation, M 64, K 128: differs .* reference: 64 of 256 bytes"
    ):
        kernels.compare(cases.rows(64, 128), cases.Draw(torch.device(DEVICE)), clock(works), print)
    assert works == []


def product(error: float) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.full((2, 2), 1 + error), torch.ones(2, 2)


def test_products_may_differ_by_what_tensor_cores_lose_and_no_more(cases) -> None:
    differ = cases.products(lambda: torch.full((2, 2), 10.0))
    assert differ(*product(9e-3)) is None
    assert differ(*product(11e-3)) == "by 1.1e-03 of the addends' magnitudes"
    assert differ(*product(torch.nan)) is not None
    rounded, wanted = product(11.5e-3)
    assert differ(rounded.bfloat16(), wanted) is None


def test_swiglu_may_differ_by_a_code_here_and_there_and_routes_where_scores_are_equal(cases) -> None:
    q, scale = torch.linspace(0, 448, 10000).to(torch.float8_e4m3fn)[None], torch.ones(1, 79)
    near, far = (q.view(torch.uint8).clone() for _ in range(2))
    near[0, :9] += 1
    far[0, 0] += 2
    assert cases.codes((near.view(q.dtype), scale), (q, scale)) is None
    assert "up to 2 codes" in cases.codes((far.view(q.dtype), scale), (q, scale))
    assert cases.codes((q, scale * 1.00001), (q, scale)) == "factors"
    weights, experts, scores = (
        torch.rand(2000, 2),
        torch.zeros(2000, 2, dtype=torch.int64),
        torch.rand(2000, 4),
    )
    other = experts.clone()
    other[0] = 1
    assert cases.routes((weights, other, scores), (weights, experts, scores)) is None
    other[:3] = 1
    assert cases.routes((weights, other, scores), (weights, experts, scores)) == "1.5e-03 of the experts"
    assert cases.routes((weights, experts, scores + 1e-3), (weights, experts, scores)) == "scores by 1.0e-03"


def test_a_peer_that_cannot_do_it_is_left_out_with_a_line(kernels, cases) -> None:
    lines: list[str] = []
    contest = cases.Contest(
        lambda backend: None, lambda ours, wanted: None, {"peer": lambda: torch.ones(2) @ torch.ones(3)}
    )
    case = cases.Case(roofline.quantize_rows(1, 128), lambda draw: contest)
    _, peer = kernels.compare(case, cases.Draw(torch.device("cpu")), clock([]), lines.append)
    assert (peer.peer, peer.ratio) == (None, None)
    assert lines[-1].startswith("kernels: peer does not do this: ")


@pytest.mark.parametrize("tiles", [False, True])
def test_torchs_own_product_gets_operands_that_it_takes(cases, tiles) -> None:
    """On meta it checks the shapes and strides of the factors as on a GPU."""
    draw = cases.Draw(torch.device("cpu"))
    a = cases.quantize_activation(draw.normal(256, 640))
    b = (cases.quantize_activation if tiles else cases.quantize_weight)(draw.normal(384, 640))
    a, b = (tuple(part.to("meta") for part in operand) for operand in (a, b))
    assert cases.scaled_mm(a, b, torch.bfloat16)().shape == (256, 384)


def test_without_a_gpu_it_is_refused_in_a_sentence_where_named_and_left_out_elsewhere(
    monkeypatch, capsys
) -> None:
    script = importlib.import_module("benchmark")
    monkeypatch.setattr(script, "BENCHMARKS", {"kernels": script.BENCHMARKS["kernels"]})
    sentence = "kernels are timed on a Hopper GPU (H100, H800, H200): this device is the cpu"
    assert script.main(["kernels", "device=cpu"]) == 2
    named = capsys.readouterr()
    assert (named.out, named.err) == ("", f"error: {sentence}\n")
    assert script.main(["device=cpu", "--json"]) == 0
    assert f"kernels is left out: {sentence}" in capsys.readouterr().err
