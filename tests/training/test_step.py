"""One optimizer step: what it divides by, what it counts, and what stops it."""

import pytest
import torch

from deepseek_mini.config import Balance, ModelConfig, OptimizerConfig, Recompute
from deepseek_mini.data import Batch
from deepseek_mini.model.recompute import recompute
from deepseek_mini.model.transformer import build_model
from deepseek_mini.optim.build import build_optimizers
from deepseek_mini.optim.schedule import StepPlan
from deepseek_mini.training.guards import NonFinite
from deepseek_mini.training.step import count_targets, train_step
from small_model import small_model_config

PLAN = StepPlan(1, 0, 6, 0, lr=1e-3, mtp_weight=0.3, bias_update_rate=0.01)
AUTOCAST = torch.autocast("cpu", torch.bfloat16, enabled=False)


def random_batch(rows: int = 6, length: int = 17) -> Batch:
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(61, (rows, length + 1), generator=generator)
    # Rows differ in how many documents they hold, hence in how many MTP predictions they ask for.
    starts = torch.rand(rows, length + 1, generator=generator) < torch.linspace(0.0, 0.6, rows)[:, None]
    return Batch(tokens, starts.long().cumsum(1))


def run_step(
    config: ModelConfig, micro_batch_size: int, again: Recompute = Recompute.none, plan: StepPlan = PLAN
):
    model = build_model(config, torch.device("cpu"), seed=1).double()
    recompute(model, again)
    optimizers = build_optimizers(model, OptimizerConfig())
    result = train_step(model, optimizers, random_batch(), plan, micro_batch_size, 1.0, AUTOCAST)
    return model, result


@pytest.mark.parametrize("micro_batch_size", [1, 2, 4, 5])
def test_the_step_does_not_depend_on_the_micro_batch_size(micro_batch_size):
    model, result = run_step(small_model_config(depth=2), micro_batch_size)
    whole, expected = run_step(small_model_config(depth=2), 6)
    torch.testing.assert_close(result.loss, expected.loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(result.grad_norm, expected.grad_norm, rtol=1e-10, atol=0)
    assert torch.equal(result.counts_LE, expected.counts_LE)
    for (name, a), (_, b) in zip(model.state_dict().items(), whole.state_dict().items(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9, msg=name)


def test_each_mtp_depth_is_a_mean_over_its_own_valid_tokens():
    batch = random_batch()
    counts = count_targets(batch, 2)
    documents = batch.documents_BS.tolist()
    for depth in (1, 2):
        valid = sum(row[i] == row[i + depth + 1] for row in documents for i in range(17 - depth))
        assert counts.mtp_tokens[depth - 1] == valid
    assert counts.mtp_tokens[0] > counts.mtp_tokens[1] > 0
    assert counts.main_tokens == 6 * 17


def test_a_batch_without_any_mtp_target_gives_no_nan():
    lonely = Batch(torch.randint(61, (2, 9)), torch.arange(9).expand(2, -1))
    model = build_model(small_model_config(depth=2), torch.device("cpu"), 0)
    result = train_step(model, build_optimizers(model, OptimizerConfig()), lonely, PLAN, 2, 1.0, AUTOCAST)
    assert result.mtp_loss == 0
    assert torch.isfinite(result.loss)


@pytest.mark.parametrize("again", [Recompute.v3, Recompute.full])
def test_a_step_with_recomputation_gives_the_same_model_to_the_bit(again):
    model, result = run_step(small_model_config(depth=2), 3, again)
    plain, expected = run_step(small_model_config(depth=2), 3)
    assert torch.equal(result.counts_LE, expected.counts_LE)
    assert int(result.counts_LE[0].sum()) == 6 * 17 * 3
    assert torch.equal(result.loss, expected.loss)
    for (name, a), (_, b) in zip(model.state_dict().items(), plain.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


def test_the_bias_moves_once_per_step_from_the_counts_of_all_micro_batches():
    model, result = run_step(small_model_config(depth=2), 2)
    for gate, counts in zip(model.gates(), result.counts_LE, strict=True):
        mean = counts.double().mean()
        expected = 0.01 * torch.sign(mean - counts.double())
        torch.testing.assert_close(gate.bias.double(), expected, rtol=1e-6, atol=0)
    assert len(result.counts_LE) == 4  # two MoE layers and two MTP depths


@pytest.mark.parametrize("balance", [Balance.none, Balance.aux_loss])
def test_only_bias_balancing_has_biases(balance):
    model, _ = run_step(small_model_config(depth=2, balance=balance), 6)
    assert all(gate.bias is None for gate in model.gates())


def test_evaluation_leaves_biases_and_weights_alone():
    model, _ = run_step(small_model_config(depth=2), 6)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    batch = random_batch()
    with torch.no_grad():
        model.predict(batch.tokens_BS, batch.documents_BS)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_the_balance_loss_reaches_the_gradient_with_its_weight():
    light, heavy = small_model_config(depth=2), small_model_config(depth=2)
    heavy.moe.sequence_loss_weight = 1.0
    assert not torch.equal(run_step(light, 6)[1].grad_norm, run_step(heavy, 6)[1].grad_norm)
    off = small_model_config(depth=2, balance=Balance.none)
    assert run_step(off, 6)[1].loss < run_step(heavy, 6)[1].loss - 1


def test_nan_stops_the_step_before_anything_is_updated_and_names_the_culprit():
    model = build_model(small_model_config(depth=2), torch.device("cpu"), 0)
    optimizers = build_optimizers(model, OptimizerConfig())
    model.layers[1].ffn.experts.w2.data[3] = torch.nan
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(NonFinite, match=r"layers\.1\.ffn\.experts\.w2"):
        train_step(model, optimizers, random_batch(), PLAN, 6, 1.0, AUTOCAST)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor.nan_to_num(), before[name].nan_to_num()), name


def test_an_infinite_gradient_names_the_first_parameter_backwards():
    model = build_model(small_model_config(depth=0), torch.device("cpu"), 0)
    optimizers = build_optimizers(model, OptimizerConfig())
    model.layers[2].attn.wo.weight.register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(NonFinite, match=r"gradients.*layers\.2\.attn\.wo"):
        train_step(model, optimizers, random_batch(), PLAN, 6, 1.0, AUTOCAST)


def test_bf16_autocast_keeps_weights_gradients_and_biases_in_fp32():
    model = build_model(small_model_config(depth=2), torch.device("cpu"), 0)
    optimizers = build_optimizers(model, OptimizerConfig())
    autocast = torch.autocast("cpu", torch.bfloat16)
    result = train_step(model, optimizers, random_batch(), PLAN, 6, 1.0, autocast)
    assert all(t.dtype == torch.float32 for t in model.state_dict().values())
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())
    plain = build_model(small_model_config(depth=2), torch.device("cpu"), 0)
    reference = train_step(
        plain, build_optimizers(plain, OptimizerConfig()), random_batch(), PLAN, 6, 1.0, AUTOCAST
    )
    assert result.loss.item() == pytest.approx(reference.loss.item(), rel=0.01)
    assert result.loss.item() != reference.loss.item()
