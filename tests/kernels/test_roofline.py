from pathlib import Path

import pytest

from deepseek_mini_kernels import roofline

README = Path(__file__).resolve().parents[2] / "kernels" / "README.md"


def test_the_readme_shows_the_table_that_the_numbers_give():
    assert roofline.table() in README.read_text()


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
    assert once < 2 * roofline.quantize_rows(4096, 4096).bytes
