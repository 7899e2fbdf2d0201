"""Muon: momentum, orthogonalised, for the hidden matrices (Jordan et al. 2024; scale of arXiv:2502.16982).

Legend: E matrices of a stack, R rows, C columns.
"""

import torch
from torch import Tensor

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic iteration that pulls singular values towards 1."""
NEWTON_SCHULZ_STEPS = 5


class Muon(torch.optim.Optimizer):
    """Each matrix moves by its orthogonalised momentum; the experts of a stack are orthogonalised at once.

    The update is scaled by 0.2 sqrt(max(R, C)), so that its entries are as large as AdamW's and both share
    one learning rate. Weight decay is decoupled. Parameters are matrices `[R, C]` or stacks `[E, R, C]`.
    """

    def __init__(self, params, lr: float, momentum: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict) -> None:
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum = state["momentum"].lerp_(gradient, 1 - group["momentum"])
        nesterov = gradient.lerp(momentum, group["momentum"])
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        scale = 0.2 * max(parameter.shape[-2:]) ** 0.5
        parameter.add_(orthogonalise(nesterov), alpha=-group["lr"] * scale)


def orthogonalise(matrices: Tensor) -> Tensor:
    """About U V^T of each `[..., R, C]` matrix U S V^T: singular values come out between 0.7 and 1.2.

    Each Newton-Schulz step multiplies X by a polynomial in X X^T. The polynomials commute with X X^T, so
    all steps are taken on that small square matrix and their product meets X once, at the end.
    """
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[-2] > matrices.shape[-1]
    x_ERC = (matrices.mT if tall else matrices).reshape(-1, *sorted(matrices.shape[-2:]))
    x_ERC = x_ERC / (x_ERC.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    gram_ERR = x_ERC @ x_ERC.mT
    product_ERR = None
    for step in range(NEWTON_SCHULZ_STEPS):
        polynomial_ERR = torch.baddbmm(gram_ERR, gram_ERR, gram_ERR, beta=b, alpha=c)
        polynomial_ERR.diagonal(dim1=-2, dim2=-1).add_(a)
        product_ERR = polynomial_ERR if product_ERR is None else polynomial_ERR @ product_ERR
        if step + 1 < NEWTON_SCHULZ_STEPS:
            gram_ERR = polynomial_ERR @ gram_ERR @ polynomial_ERR
    assert product_ERR is not None
    orthogonal_ERC = product_ERR @ x_ERC
    return (orthogonal_ERC.mT if tall else orthogonal_ERC).reshape(matrices.shape)
