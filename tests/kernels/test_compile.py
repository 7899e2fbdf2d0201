"""The production configurations, compiled for Hopper without one: instructions, registers, shared memory."""

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from deepseek_mini_kernels.configs import OTHER_CALLS, PRODUCTION

pytest.importorskip("triton")

GOLDEN = json.loads((Path(__file__).parent / "golden_resources.json").read_text())
LARGEST_SHARED = 227 * 1024
REGISTER_FILE = 65536
TYPICAL = (
    "quantize_both",
    "quantize_weight_and_transpose",
    "matmul_blocks",
    "matmul_tiles",
    "grouped_matmul",
    "grouped_wgrad",
    "swiglu_quantize_columns",
    "route",
)
SLACK = 8
"""Registers by which another release of the compiler's back end may differ."""


def compile_for_hopper(cache: Path, *names: str) -> dict[str, dict]:
    """Resources by configuration. In a process of its own: here triton interprets."""
    environment = os.environ | {"TRITON_CACHE_DIR": str(cache), "TRITON_INTERPRET": "0"}
    command = [sys.executable, "-m", "deepseek_mini_kernels.compile", "--json", *names]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture(
    scope="module",
    params=[
        "typical",
        pytest.param("all", marks=pytest.mark.slow),
        pytest.param("calls", marks=pytest.mark.slow),
    ],
)
def compiled(request, tmp_path_factory) -> dict[str, dict]:
    names = {"typical": TYPICAL, "all": tuple(PRODUCTION), "calls": tuple(OTHER_CALLS)}[request.param]
    return compile_for_hopper(tmp_path_factory.mktemp("triton"), *names)


def test_configurations_compile_for_hopper_without_spilling_a_register(compiled):
    for name, row in compiled.items():
        assert row["target"] == "sm_90a", name
        assert (row["stack"], row["spills"]) == (0, 0), name
        assert row["registers"] <= 255, name
        assert row["registers"] * row["threads"] <= REGISTER_FILE, name


def test_shared_memory_fits_a_hopper_multiprocessor(compiled):
    for name, row in compiled.items():
        assert row["shared"] <= LARGEST_SHARED, name


def test_products_run_on_fp8_tensor_cores_four_instructions_between_promotions(compiled):
    """wgmma takes 32 elements along K: four of them are the 128 after which sums move to float32."""
    for name, row in compiled.items():
        wanted = 4 if PRODUCTION[name.split(":")[0]].tensor_cores else 0
        assert (row["fp8_products"], row["other_products"]) == (wanted, 0), name


def test_products_of_aligned_operands_load_ahead_asynchronously(compiled):
    for name, row in compiled.items():
        config = PRODUCTION[name.split(":")[0]]
        assert (row["async_loads"] > 0) == (config.num_stages > 1), name
        if config.num_stages > 1:
            assert row["shared"] >= (config.num_stages - 1) * 128 * (config.tile["BLOCK_M"] + 128), name


def test_quantisers_cast_with_the_saturating_instruction(compiled):
    for name, row in compiled.items():
        assert (row["saturating_casts"] > 0) == ("quantize" in name), name


def test_registers_and_shared_memory_are_those_of_the_golden_table(compiled, capsys):
    release = version("triton")
    golden = GOLDEN.get(release, {})
    lines = [f"triton {release}, sm_90a{'' if golden else ' (no golden table)'}"]
    for name, row in compiled.items():
        lines.append(f"  {name:38}{row['registers']:>5} registers {row['shared']:>8} B shared")
    with capsys.disabled():
        sys.stdout.write("\n" + "\n".join(lines) + "\n")
    for name, wanted in golden.items():
        if name in compiled:
            row = compiled[name]
            assert abs(row["registers"] - wanted["registers"]) <= SLACK, name
            assert {key: row[key] for key in wanted if key != "registers"} == {
                key: wanted[key] for key in wanted if key != "registers"
            }, name


def test_the_golden_tables_name_exactly_the_production_configurations():
    for release, rows in GOLDEN.items():
        assert list(rows) == list(PRODUCTION), release


def test_unknown_configurations_are_refused():
    result = subprocess.run(
        [sys.executable, "-m", "deepseek_mini_kernels.compile", "nothing"], capture_output=True, text=True
    )
    assert result.returncode == 2
    assert "no configuration nothing; there are quantize_activation," in result.stderr
