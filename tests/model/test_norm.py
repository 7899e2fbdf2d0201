import torch
from hypothesis import given
from hypothesis import strategies as st

from deepseek_mini.model.norm import RMSNorm
from model.helpers import assert_close, fill, inputs, many, seeds
from oracles import layers


@many
@given(st.integers(1, 6), seeds, st.sampled_from([1e-4, 1.0, 1e4]))
def test_norm_agrees_with_oracle(dim: int, seed: int, size: float) -> None:
    norm, x_ND = fill(RMSNorm(dim).double(), seed), inputs(seed + 1, 3, dim).detach() * size
    expected = [layers.rms_norm(norm.weight.tolist(), x) for x in x_ND.tolist()]
    assert_close(norm(x_ND), expected, 1e-9)


def test_norm_of_zeros_is_zero_with_a_finite_gradient() -> None:
    x_ND = torch.zeros(2, 8, requires_grad=True)
    y_ND = RMSNorm(8)(x_ND)
    y_ND.sum().backward()
    assert (y_ND == 0).all()
    assert x_ND.grad.isfinite().all()


def test_norm_of_bf16_is_computed_in_float32() -> None:
    x_ND = (inputs(0, 4, 512).detach() * 100).bfloat16()
    norm = fill(RMSNorm(512), 1)
    assert torch.equal(norm(x_ND), norm(x_ND.float()).bfloat16())
