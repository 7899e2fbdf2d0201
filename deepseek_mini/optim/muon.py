"""Muon: momentum, orthogonalised, for the hidden matrices (scaled as in arXiv:2502.16982).

Legend: E matrices of a stack, R rows, C columns.
"""

import torch
from torch import Tensor

from deepseek_mini.optim.voidable import VoidableOptimizer

POLYNOMIALS = (
    (8.093369, -23.620430, 17.446152),
    (3.636586, -2.721927, 0.536546),
    (2.661300, -1.977155, 0.452616),
)
"""Coefficients (a, b, c) of a x + b x^3 + c x^5, one polynomial after the other.

Each is the best of its kind at taking what its predecessors made of [0.01, 1] towards 1 (arXiv:2505.16932).
Three of them come as close as five steps with Muon's first coefficients, (3.4445, -4.7750, 2.0315).
"""


class Muon(VoidableOptimizer):
    """Each matrix moves by its orthogonalised momentum; the experts of a stack are orthogonalised at once.

    The update is scaled by 0.2 sqrt(max(R, C)), so that its entries are as large as AdamW's and both share
    one learning rate. Weight decay is decoupled. Parameters are matrices `[R, C]` or stacks `[E, R, C]`.
    """

    def __init__(
        self,
        params,
        lr: float,
        momentum: float,
        weight_decay: float,
        moment_dtype: torch.dtype | None = None,
    ) -> None:
        """The momentum is kept in `moment_dtype`, by default the parameter's, in which it is computed."""
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.moment_dtype = moment_dtype

    def update(self, parameter: Tensor, gradient: Tensor, group: dict, live: float | Tensor) -> None:
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter, dtype=self.moment_dtype)
        momentum = state["momentum"].to(parameter.dtype).lerp_(gradient, (1 - group["momentum"]) * live)
        state["momentum"].copy_(momentum)
        nesterov = gradient.lerp(momentum, group["momentum"])
        parameter.mul_(1 - group["lr"] * group["weight_decay"] * live)
        scale = 0.2 * max(parameter.shape[-2:]) ** 0.5
        parameter.add_(orthogonalise(nesterov).mul_(-group["lr"] * scale * live))


def orthogonalise(matrices: Tensor) -> Tensor:
    """About U V^T of each `[..., R, C]` matrix U S V^T.

    Singular values of at least 0.01 of the matrix's Frobenius norm come out between 0.73 and 1.27.

    Each step multiplies X by a polynomial in X X^T. The polynomials commute with X X^T, so all steps are
    taken on that small square matrix and their product meets X once, at the end.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x_ERC = (matrices.mT if tall else matrices).reshape(-1, *sorted(matrices.shape[-2:]))
    x_ERC = x_ERC / (x_ERC.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    gram_ERR = x_ERC @ x_ERC.mT
    product_ERR = None
    for step, (a, b, c) in enumerate(POLYNOMIALS, start=1):
        polynomial_ERR = torch.baddbmm(gram_ERR, gram_ERR, gram_ERR, beta=b, alpha=c)
        polynomial_ERR.diagonal(dim1=-2, dim2=-1).add_(a)
        product_ERR = polynomial_ERR if product_ERR is None else polynomial_ERR @ product_ERR
        if step < len(POLYNOMIALS):
            gram_ERR = polynomial_ERR @ gram_ERR @ polynomial_ERR
    assert product_ERR is not None
    orthogonal_ERC = product_ERR @ x_ERC
    return (orthogonal_ERC.mT if tall else orthogonal_ERC).reshape(matrices.shape)
