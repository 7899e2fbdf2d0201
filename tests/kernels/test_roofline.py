import json
from pathlib import Path

import pytest

from deepseek_mini_kernels import roofline
from deepseek_mini_kernels.roofline import Measured

README = Path(__file__).resolve().parents[2] / "kernels" / "README.md"
REPORT = README.with_name("measured.json")
"""Of `scripts/benchmark.py kernels --json` on a GPU; there is none until one has run it."""
ROW = {"name": "kernels_route", "unit": "us, M 8192, E 256, top 8", "ours": 10.5, "peer_name": roofline.FLOOR}


def measured_route() -> Measured:
    return Measured.read(
        {"device": "NVIDIA H100", "results": [ROW, ROW | {"ours": 1.0, "peer_name": "naive"}]}
    )


def test_the_readme_shows_the_table_that_the_numbers_give():
    measured = Measured.read(json.loads(REPORT.read_text())) if REPORT.exists() else None
    assert roofline.table(measured) in README.read_text()


def test_what_was_measured_stands_beside_the_floor_and_the_rest_is_marked():
    table = roofline.table(measured_route())
    assert "| `route` | M 8192, E 256, top 8 | 17.6 |  |  | 5.2 | memory | 10.5 us, 50% |" in table
    assert table.count("*not measured*") == len(roofline.V3) - 1
    assert table.endswith("\n\nMeasured on NVIDIA H100.")


def test_a_page_gets_the_new_table_in_the_place_of_the_old_one(tmp_path):
    page, report = tmp_path / "README.md", tmp_path / "report.json"
    page.write_text(README.read_text() + "\nThe end.\n")
    report.write_text(json.dumps({"device": "NVIDIA H800", "results": [ROW]}))
    assert roofline.main([str(report), "--write", str(page)]) == 0
    assert roofline.table(Measured("NVIDIA H800", measured_route().seconds)) in page.read_text()
    assert page.read_text().endswith("Measured on NVIDIA H800.\n\nThe end.\n")
    assert roofline.main([str(report), "--write", str(page)]) == 0
    assert page.read_text().count("Measured on") == 1
    assert roofline.main(["--write", str(page)]) == 0
    assert page.read_text() == README.read_text() + "\nThe end.\n"


def test_without_a_page_the_table_is_printed(capsys):
    assert roofline.main([]) == 0
    assert capsys.readouterr().out == roofline.table() + "\n"


def test_a_square_product_is_bound_by_tensor_cores_and_a_thin_one_by_memory():
    square, thin = roofline.matmul(8192, 8192, 8192), roofline.matmul(1, 8192, 8192)
    assert square.bound == "tensor cores"
    assert square.floors[square.bound] == pytest.approx(2 * 8192**3 / 1978.9e12)
    assert thin.bound == "memory"
    assert thin.floors[thin.bound] == pytest.approx(8192**2 / 3.35e12, rel=0.01)


def test_promotion_costs_a_multiply_add_per_result_and_block():
    work = roofline.matmul(256, 512, 300)
    assert work.promotion_flops == 2 * 256 * 512 * 3
    assert roofline.matmul(256, 512, 300, tiles=True).promotion_flops == 3 * 256 * 512 * 3


def test_quantising_rows_and_columns_in_one_pass_moves_less_than_in_two():
    once = roofline.quantize_both(4096, 4096).bytes
    assert once == 4096 * 4096 * 4 + 2 * 4096 * 32 * 4
    in_two = roofline.quantize_rows(4096, 4096).bytes + roofline.quantize_columns(4096, 4096).bytes
    assert once < in_two
