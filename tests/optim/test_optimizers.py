"""Which parameter is updated by what, and Muon's update itself."""

import numpy as np
import pytest
import torch
from torch import Tensor

from deepseek_mini.config import ModelConfig, Optimizer, OptimizerConfig
from deepseek_mini.model.transformer import Transformer
from deepseek_mini.optim.build import build_optimizers, set_learning_rate
from deepseek_mini.optim.muon import POLYNOMIALS, Muon, orthogonalise
from oracles import optimizers as oracle


def meta_model() -> Transformer:
    with torch.device("meta"):
        return Transformer(ModelConfig(n_layers=2, n_dense_layers=1, n_routed_experts=16))


def groups_by_name(model, optimizers):
    names = {id(p): n for n, p in model.named_parameters()}
    return [(o, g, names[id(p)]) for o in optimizers for g in o.param_groups for p in g["params"]]


def test_every_parameter_is_updated_exactly_once():
    model = meta_model()
    for name in Optimizer:
        updated = [
            n for _, _, n in groups_by_name(model, build_optimizers(model, OptimizerConfig(name=name)))
        ]
        assert sorted(updated) == sorted(n for n, _ in model.named_parameters())


def test_weight_decay_acts_on_matrices_and_not_on_norms():
    model = meta_model()
    for _, group, name in groups_by_name(model, build_optimizers(model, OptimizerConfig())):
        assert group["weight_decay"] == (0.0 if "norm" in name else 0.1), name


def test_muon_leaves_embedding_head_and_norms_to_adamw():
    model = meta_model()
    optimizers = build_optimizers(model, OptimizerConfig(name=Optimizer.muon))
    for optimizer, _, name in groups_by_name(model, optimizers):
        outer = name in ("embed.weight", "head.weight") or "norm" in name
        assert isinstance(optimizer, Muon) != outer, name


def test_adamw_updates_all_parameters_in_one_fused_pass():
    for name in Optimizer:
        outer, *_ = build_optimizers(meta_model(), OptimizerConfig(name=name))
        assert isinstance(outer, torch.optim.AdamW)
        assert outer.defaults["fused"], name


def test_the_learning_rate_reaches_every_group_and_the_embedding_in_its_own_scale():
    model = meta_model()
    config = OptimizerConfig(name=Optimizer.muon, embedding_lr_scale=4.0)
    optimizers = build_optimizers(model, config)
    set_learning_rate(optimizers, 0.125)
    for _, group, name in groups_by_name(model, optimizers):
        assert group["lr"] == (0.5 if name == "embed.weight" else 0.125), name


def matrix_with(singular_values: Tensor, columns: int) -> Tensor:
    rows = len(singular_values)
    u, _ = torch.linalg.qr(torch.randn(rows, rows, dtype=torch.float64))
    v, _ = torch.linalg.qr(torch.randn(columns, rows, dtype=torch.float64))
    return u * singular_values @ v.mT


def test_orthogonalised_matrices_have_singular_values_near_one_and_the_same_singular_vectors():
    torch.manual_seed(0)
    values = torch.logspace(-2, 0, 24, dtype=torch.float64)
    values /= values.norm()
    values = values[values >= 0.01]
    values = torch.cat((values, (1 - values.square().sum()).sqrt()[None]))
    wide = torch.stack([matrix_with(values, 40) for _ in range(3)])
    for stack in (wide, wide.mT):
        result = orthogonalise(stack)
        singular = torch.linalg.svdvals(result)
        assert singular.min() > 0.73
        assert singular.max() < 1.27
        u, _, vh = torch.linalg.svd(stack, full_matrices=False)
        rotated = u.mT @ result @ vh.mT
        torch.testing.assert_close(
            rotated, torch.diag_embed(rotated.diagonal(dim1=1, dim2=2)), atol=1e-8, rtol=0
        )


def test_each_polynomial_is_the_best_odd_quintic_for_what_the_ones_before_it_leave():
    """The error of a minimax polynomial reaches its largest size, with changing sign, four times."""
    low, high = 0.01, 1.0
    for a, b, c in POLYNOMIALS:
        inner = np.sqrt(np.sort(np.roots([5 * c, 3 * b, a]).real))
        points = np.array([low, *inner, high])
        errors = a * points + b * points**3 + c * points**5 - 1
        assert np.all(np.sign(errors) == [-1, 1, -1, 1])
        np.testing.assert_allclose(np.abs(errors), np.abs(errors).mean(), rtol=1e-4)
        low, high = 1 - np.abs(errors).mean(), 1 + np.abs(errors).mean()


def test_orthogonalisation_equals_the_newton_schulz_iteration_as_written():
    torch.manual_seed(0)
    for shape in ((5, 9), (9, 5), (4, 7, 7), (3, 2, 6, 11)):
        matrices = torch.randn(*shape, dtype=torch.float64)
        x = matrices / (matrices.norm(dim=(-2, -1), keepdim=True) + 1e-7)
        for a, b, c in POLYNOMIALS:
            x = a * x + b * x @ x.mT @ x + c * x @ x.mT @ x @ x.mT @ x
        torch.testing.assert_close(orthogonalise(matrices), x, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(orthogonalise(matrices.float()).double(), x, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("shape", [(2, 3), (5, 2), (3, 4, 2)])
def test_muons_steps_equal_the_update_as_written(shape):
    generator = torch.Generator().manual_seed(0)
    start, *gradients = torch.randn(4, *shape, generator=generator, dtype=torch.float64)
    parameter = torch.nn.Parameter(start.clone())
    optimizer = Muon([parameter], lr=0.1, momentum=0.9, weight_decay=0.3)
    for gradient in gradients:
        parameter.grad = gradient
        optimizer.step()

    def each(stack: Tensor) -> list:
        return stack.reshape(-1, *shape[-2:]).tolist()

    for i, matrix in enumerate(each(start)):
        own = [each(gradient)[i] for gradient in gradients]
        expected = oracle.muon(matrix, own, 0.1, 0.9, 0.3, POLYNOMIALS)
        np.testing.assert_allclose(each(parameter.detach())[i], expected, rtol=1e-9, atol=1e-10)


def test_muon_updates_a_stack_as_it_would_each_matrix_alone():
    torch.manual_seed(0)
    start, gradients = torch.randn(4, 6, 10), [torch.randn(4, 6, 10) for _ in range(3)]

    def run(parameters):
        optimizer = Muon(parameters, lr=0.1, momentum=0.9, weight_decay=0.1)
        for gradient in gradients:
            for i, parameter in enumerate(parameters):
                parameter.grad = gradient if len(parameters) == 1 else gradient[i]
            optimizer.step()
        return parameters

    (stack,) = run([torch.nn.Parameter(start.clone())])
    alone = run([torch.nn.Parameter(matrix.clone()) for matrix in start])
    torch.testing.assert_close(stack, torch.stack(list(alone)), rtol=1e-5, atol=1e-6)
