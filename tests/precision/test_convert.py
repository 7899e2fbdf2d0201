"""Which modules become FP8 ones, and that nothing else about a model changes."""

import pytest
import torch
from torch import Tensor, nn

from deepseek_mini.compose import load_config
from deepseek_mini.config import Attention, Backend, Format, ModelConfig, OptimizerConfig, PrecisionConfig
from deepseek_mini.model.transformer import Transformer, build_model, build_on_meta
from deepseek_mini.optim.build import build_optimizers
from deepseek_mini.precision.arithmetic import Arithmetic
from deepseek_mini.precision.convert import convert, holding_weights, short_list
from deepseek_mini.precision.experts import Fp8Experts
from deepseek_mini.precision.linear import AttentionOutput, Fp8Linear
from deepseek_mini.training.step import train_step
from small_model import small_model_config
from training.test_step import PLAN, random_batch

CPU = torch.device("cpu")
EMULATED = PrecisionConfig(Format.fp8, Backend.emulated)
ATTENTION = ("attn.wq_a", "attn.wq_b", "attn.wkv_a", "attn.wkv_b", "attn.wo")
SHARED = tuple(f"ffn.shared_experts.{name}" for name in ("w1", "w2", "w3"))


def test_exactly_the_linears_that_the_paper_names_become_fp8():
    """A renamed module must not move in or out unseen."""
    names = convert(build_on_meta(load_config(["model=tiny"]).model), EMULATED)
    wanted = {f"layers.{i}.{name}" for i in range(6) for name in ATTENTION}
    wanted |= {f"layers.0.ffn.{name}" for name in ("w1", "w2", "w3")}
    wanted |= {f"layers.{i}.{name}" for i in range(1, 6) for name in ("ffn.experts", *SHARED)}
    wanted |= {f"mtp.0.block.{name}" for name in (*ATTENTION, "ffn.experts", *SHARED)}
    assert len(names) == len(set(names))
    assert set(names) == wanted


def test_what_stays_in_high_precision_is_the_rest():
    model = build_on_meta(load_config(["model=tiny"]).model)
    converted = convert(model, EMULATED)
    own = {name for name, _ in model.named_parameters()}
    inside = {name for name in own if any(name.startswith(f"{module}.") for module in converted)}
    rest = {name.rpartition(".layers.")[2] for name in own - inside}
    assert {name for name in rest if "norm" not in name and ".ffn.gate." not in name} == {
        "embed.weight",
        "head.weight",
        "mtp.0.eh_proj.weight",
    }


@pytest.mark.parametrize(
    ("attention", "rank", "wanted"),
    [
        (Attention.gqa, 12, {"wq", "wk", "wv", "wo"}),
        (Attention.mla, 0, {"wq", "wkv_a", "wkv_b", "wo"}),
    ],
)
def test_other_kinds_of_attention_are_converted_whole(attention, rank, wanted):
    config = ModelConfig(n_layers=1, n_dense_layers=1, attention=attention, q_lora_rank=rank)
    names = convert(build_on_meta(config), EMULATED)
    assert {name.rpartition(".")[2] for name in names if name.startswith("layers.0.attn.")} == wanted


def test_the_linear_after_attention_and_no_other_has_its_own_format():
    model = build_on_meta(small_model_config())
    convert(model, EMULATED)
    kinds = {name: type(module) for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert {name for name, kind in kinds.items() if kind is AttentionOutput} == {
        name for name in kinds if name.endswith(".wo")
    }


def test_parameters_and_checkpoints_stay_as_they_are():
    model = build_model(small_model_config(), CPU, seed=1)
    before, parameters = model.state_dict(), dict(model.named_parameters())
    convert(model, EMULATED)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], tensor) and after[name].dtype == tensor.dtype
               for name, tensor in before.items())  # fmt: skip
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())


@pytest.mark.parametrize("format", [Format.auto, Format.bf16, Format.fp32])
def test_other_formats_convert_nothing(format):
    model = build_on_meta(small_model_config())
    kinds = [type(module) for module in model.modules()]
    assert convert(model, PrecisionConfig(format)) == []
    assert [type(module) for module in model.modules()] == kinds


def converted_model() -> Transformer:
    model = build_model(small_model_config(), CPU, seed=1)
    convert(model, EMULATED)
    return model


def trained(model: Transformer, steps: int = 3) -> dict[str, Tensor]:
    """Weights after a few steps of several micro-batches, with an evaluation in between."""
    optimizers, batch = build_optimizers(model, OptimizerConfig()), random_batch()
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=False)
    for _ in range(steps):
        train_step(model, optimizers, batch, PLAN, 2, 1.0, autocast)
        with torch.no_grad(), holding_weights(model):
            model.losses(batch.tokens_BS, batch.documents_BS)
    return model.state_dict()


def test_weights_are_quantised_once_a_step_and_every_step_anew(monkeypatch):
    model, prepared = converted_model(), []
    n_weights = sum(1 + 2 * isinstance(m, Fp8Experts) for m in model.modules()
                    if isinstance(m, Fp8Linear | Fp8Experts))  # fmt: skip
    prepare = Arithmetic._prepare
    monkeypatch.setattr(Arithmetic, "_prepare", lambda self, w: prepared.append(w) or prepare(self, w))
    trained(model, steps=3)
    assert len(prepared) == 3 * 2 * n_weights  # training and evaluation


def test_held_weights_give_the_same_training_as_weights_quantised_at_every_use(monkeypatch):
    held = trained(converted_model())
    monkeypatch.setattr(Arithmetic, "weight", Arithmetic._prepare)
    fresh = trained(converted_model())
    for name, tensor in held.items():
        assert torch.equal(tensor, fresh[name]), name


def test_weights_are_not_held_beyond_the_context():
    model = converted_model()
    tokens = random_batch().tokens_BS
    with torch.no_grad():
        with holding_weights(model):
            before = model(tokens)
        for parameter in model.parameters():
            parameter.data.mul_(1.5)  # which leaves no trace in the tensor's version
        after = model(tokens)
        with holding_weights(model):
            assert torch.equal(model(tokens), after)
    assert not torch.equal(after, before)


def test_gradients_reach_every_parameter():
    model = converted_model()
    batch = random_batch()
    losses = model.losses(batch.tokens_BS, batch.documents_BS)
    (losses.main_sum + losses.mtp_sums[0]).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.dtype == torch.float32, name
        assert parameter.grad.count_nonzero() > 0, name


def test_names_are_shortened_to_ranges_and_braces():
    names = [
        "layers.0.attn.wq",
        "layers.0.attn.wo",
        "layers.1.attn.wq",
        "layers.1.attn.wo",
        "mtp.0.block.ffn.experts",
    ]
    assert short_list(names) == "layers.0-1.attn.{wq,wo}, mtp.0.block.ffn.experts"
