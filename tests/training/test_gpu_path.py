"""What a GPU runs: the host never waits for it within a step, and no shape hangs on the routing."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from deepseek_mini import run_files
from deepseek_mini.config import Optimizer, OptimizerConfig
from deepseek_mini.model import experts
from deepseek_mini.model.transformer import build_model
from deepseek_mini.optim.build import build_optimizers
from deepseek_mini.optim.schedule import plan_run
from deepseek_mini.training import step, trainer
from deepseek_mini.training.guards import void_unless_finite
from deepseek_mini.training.trainer import Trainer, run
from deepseek_mini.training.unread import Unread
from fake_gpu import run_apart
from small_model import small_model_config


@pytest.fixture(scope="module")
def cases() -> dict[str, Any]:
    return run_apart(Path(__file__).parents[1] / "on_fake_gpu.py")


def test_reading_a_number_a_shape_that_hangs_on_numbers_or_a_copy_is_noticed(cases) -> None:
    assert cases["offend"]["errors"] == [
        "DataDependentOutputException",
        "DataDependentOutputException",
        "DynamicOutputShapeException",
        "DataDependentOutputException",
    ]
    assert len(cases["offend"]["crossings"]) == 2
    assert len(cases["offend"]["uploads"]) == 1


@pytest.mark.parametrize("case", ["adamw", "muon"])
def test_a_training_step_never_waits_for_the_gpu(case: str, cases) -> None:
    assert cases[case]["crossings"] == []
    layers, micro_batches, products = 2, 2, 3 * 3  # forward, and two gradients each
    assert cases[case]["grouped"] == layers * micro_batches * products


@pytest.mark.parametrize("case", ["adamw", "muon"])
def test_a_training_step_casts_each_weight_once(case: str, cases) -> None:
    for name, n_casts in cases[case]["casts"].items():
        kept = name.endswith(("norm.weight", "gate.weight", "embed.weight"))
        assert n_casts == (0 if kept else 1), name


def test_decoding_a_token_never_waits_for_the_gpu_takes_nothing_from_the_host_and_repeats_its_shapes(
    cases,
) -> None:
    assert cases["decode"]["crossings"] == cases["decode"]["uploads"] == []
    assert cases["decode"]["operations"] > 100
    assert cases["decode"]["repeats"]


class Shapes(TorchDispatchMode):
    """Every operation with the shapes of all its tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        leaves = tree_leaves((args, kwargs, result))
        self.seen.append((func, [leaf.shape for leaf in leaves if isinstance(leaf, torch.Tensor)]))
        return result


def test_no_shape_of_grouped_experts_depends_on_the_routing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU's path of the experts with numbers, on a CPU: a balanced routing and a lopsided one."""
    config = small_model_config()
    stack = experts.RoutedExperts(config)
    for parameter in stack.parameters():
        torch.nn.init.normal_(parameter)
    monkeypatch.setattr(experts._ExpertLoop, "apply", partial(experts._grouped_experts, stack.inner))
    seen = []
    for experts_NK in (torch.arange(48).view(16, 3) % 8, torch.tensor([[2, 5, 7]]).repeat(16, 1)):
        x_ND, weights_NK = torch.randn(16, config.dim, requires_grad=True), torch.rand(16, 3)
        stack.zero_grad()
        with Shapes() as shapes:
            stack(x_ND, weights_NK, experts_NK).sum().backward()
        seen.append(shapes.seen)
    assert len(seen[0]) > 20
    assert seen[0] == seen[1]


@pytest.mark.parametrize("name", Optimizer)
def test_an_update_that_is_not_finite_and_all_later_ones_are_void(name: Optimizer) -> None:
    model = build_model(small_model_config(), torch.device("cpu"), 0)
    optimizers = build_optimizers(model, OptimizerConfig(name=name, lr=0.1))
    factors = []
    for bad in (0.0, torch.nan, 0.0):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, 0.5 + bad)
        norm = torch.tensor(1.0 + bad)
        before = [parameter.clone() for parameter in model.parameters()]
        factors.append(float(void_unless_finite(optimizers, torch.tensor(3.0), norm)))
        for optimizer in optimizers:
            optimizer.step()
        moved = [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
        assert all(moved) if factors[-1] else not any(moved)
    assert factors == [1.0, 0.0, 0.0]
    for optimizer in optimizers:
        for state in optimizer.state.values():
            assert all(moment.isfinite().all() for moment in state.values())


@pytest.mark.parametrize("name", Optimizer)
def test_guarding_changes_no_bit_of_a_finite_update(name: Optimizer) -> None:
    models = []
    for guarded in (False, True):
        model = build_model(small_model_config(), torch.device("cpu"), 0)
        optimizers = build_optimizers(model, OptimizerConfig(name=name, lr=0.1))
        for seed in range(3):
            for parameter in model.parameters():
                generator = torch.Generator().manual_seed(seed)
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            if guarded:
                void_unless_finite(optimizers, torch.tensor(3.0), torch.tensor(1.0))
            for optimizer in optimizers:
                optimizer.step()
        models.append(model)
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trainer does as on a GPU, with numbers: it reads late, and the update voids itself."""
    monkeypatch.setattr(
        step, "guard_update", lambda _, optimizers, *numbers: void_unless_finite(optimizers, *numbers)
    )
    real = Trainer.reads_now

    def reads_now(self: Trainer) -> bool:
        self.device = torch.device("cuda")
        due = real(self)
        self.device = torch.device("cpu")
        return due

    monkeypatch.setattr(Trainer, "reads_now", reads_now)


def test_figures_are_read_at_logged_steps_only_and_are_the_same(
    make_config, tmp_path, as_on_a_gpu, monkeypatch
) -> None:
    config = make_config("trainer.log_every=3", "trainer.eval_every=12", "trainer.save_every=12")
    readings = []
    real = Unread.read
    monkeypatch.setattr(Unread, "read", lambda self: readings.append(len(self.steps)) or real(self))
    assert run(config, tmp_path / "late", []) == 0
    assert readings == [1, 2, 3, 3, 3]
    late = run_files.read_metrics(tmp_path / "late")
    monkeypatch.undo()
    assert run(config, tmp_path / "plain", []) == 0
    plain = run_files.read_metrics(tmp_path / "plain")
    for key in ("step", "tokens", "train/loss", "train/mtp_loss", "optim/grad_norm", "moe/max_violation"):
        assert [row[key] for row in late] == [row[key] for row in plain], key
    assert all(0 < row["perf/step_seconds"] < 10 for row in late)
    ledger = [json.loads(line) for line in (tmp_path / "late" / "ledger.jsonl").read_text().splitlines()]
    assert sum(row["steps"] for row in ledger) == 12


def test_a_step_found_not_finite_later_has_changed_nothing(
    make_config, tmp_path, as_on_a_gpu, monkeypatch
) -> None:
    """Step 6 is bad and step 7 is fine again; both are read at step 8, before it would be saved."""
    config = make_config("trainer.log_every=4", "trainer.eval_every=12", "trainer.save_every=4")
    real, weights = trainer.train_step, {}

    def bad_at_step_6(model, optimizers, batch, plan, *rest):
        factor = torch.nan if plan.step == 6 else 1.0
        hook = model.head.weight.register_hook(lambda gradient: gradient * factor)
        result = real(model, optimizers, batch, plan, *rest)
        hook.remove()
        weights[plan.step] = [parameter.clone() for parameter in model.state_dict().values()]
        return result

    monkeypatch.setattr(trainer, "train_step", bad_at_step_6)
    assert run(config, tmp_path / "run", []) == 1
    assert run_files.read_summary(tmp_path / "run")["exit_reason"] == "non_finite"
    assert run_files.read_summary(tmp_path / "run")["tokens"] == plan_run(config)[5].tokens_before
    event = json.loads((tmp_path / "run" / "events.jsonl").read_text().splitlines()[-1])
    assert event["step"] == 6
    assert run_files.latest_checkpoint(tmp_path / "run" / "checkpoints").name == "step_00000004"
    assert all(torch.equal(a, b) for a, b in zip(weights[5], weights[8], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(weights[4], weights[5], strict=True))
