"""Contradictions between fields are refused, and the message names the keys and the fix."""

import math
import subprocess
import sys
from collections.abc import Callable

import pytest

from deepseek_mini.config import (
    Attention,
    Balance,
    BalanceScope,
    Config,
    DataConfig,
    GroupScore,
    ModelConfig,
    MoeConfig,
    MtpConfig,
    OptimizerConfig,
    Phase,
    ScheduleConfig,
    Shape,
    Source,
    TensorboardConfig,
    TrainerConfig,
)

CONTRADICTIONS: list[tuple[Callable[[], object], list[str]]] = [
    (lambda: ModelConfig(dim=0), ["model.dim=0", "at least 1"]),
    (lambda: ModelConfig(q_lora_rank=-1), ["model.q_lora_rank=-1", "at least 0"]),
    (lambda: ModelConfig(n_layers=2, n_dense_layers=3), ["model.n_dense_layers=3", "model.n_layers=2"]),
    (lambda: ModelConfig(n_routed_experts=30), ["model.n_routed_experts=30", "model.n_expert_groups=8"]),
    (lambda: ModelConfig(n_limited_groups=9), ["model.n_limited_groups=9", "model.n_expert_groups=8"]),
    (
        lambda: ModelConfig(n_routed_experts=16, n_limited_groups=2, n_activated_experts=5),
        ["model.n_activated_experts=5", "model.n_limited_groups=2", "model.n_activated_experts<=4"],
    ),
    (
        lambda: ModelConfig(n_routed_experts=8, n_activated_experts=4),
        ["model.group_score=top2", "model.group_score=max"],
    ),
    (lambda: ModelConfig(qk_rope_head_dim=33), ["model.qk_rope_head_dim=33", "even"]),
    (lambda: ModelConfig(attention=Attention.mha, v_head_dim=33), ["model.v_head_dim=33", "mha"]),
    (
        lambda: ModelConfig(attention=Attention.gqa, n_heads=6, n_kv_heads=4),
        ["model.n_heads=6", "model.n_kv_heads=4"],
    ),
    (lambda: ModelConfig(init_std=0.0), ["model.init_std=0.0", "positive"]),
    (lambda: ModelConfig(route_scale=math.inf), ["model.route_scale=inf", "finite"]),
    (lambda: ModelConfig(rope_theta=1.0), ["model.rope_theta=1.0", "above 1"]),
    (lambda: ModelConfig(rope_theta=math.inf), ["model.rope_theta=inf", "finite"]),
    (lambda: ModelConfig(beta_fast=0), ["model.beta_fast=0", "above model.beta_slow=1"]),
    (lambda: ModelConfig(beta_slow=0), ["model.beta_slow=0", "positive"]),
    (lambda: ModelConfig(mscale=math.nan), ["model.mscale=nan", "finite"]),
    (lambda: ModelConfig(mtp=MtpConfig(depth=-1)), ["model.mtp.depth=-1"]),
    (lambda: ScheduleConfig(lr=[]), ["schedule.lr", "1.0"]),
    (lambda: ScheduleConfig(lr=[Phase(until=0.5)]), ["schedule.lr", "0.5"]),
    (
        lambda: ScheduleConfig(batch_size=[Phase(until=0.7), Phase(until=0.6), Phase()]),
        ["schedule.batch_size"],
    ),
    (lambda: ScheduleConfig(mtp_weight=[Phase(value=-1.0)]), ["schedule.mtp_weight", "negative"]),
    (lambda: ScheduleConfig(lr=[Phase(start=-5.0)]), ["schedule.lr", "negative", "-5.0"]),
    (lambda: ScheduleConfig(bias_rate=[Phase(value=math.inf)]), ["schedule.bias_rate", "finite"]),
    (lambda: ScheduleConfig(batch_size=[Phase(value=0.0)]), ["schedule.batch_size", "above 0"]),
    (lambda: ScheduleConfig(batch_size=[Phase(start=0.0)]), ["schedule.batch_size", "above 0"]),
    (lambda: ScheduleConfig(warmup=1.0), ["schedule.warmup=1.0", "fraction"]),
    (lambda: ScheduleConfig(min_warmup_steps=-1), ["schedule.min_warmup_steps=-1"]),
    (lambda: MoeConfig(sequence_loss_weight=-1.0), ["model.moe.sequence_loss_weight=-1.0", "at least 0"]),
    (lambda: DataConfig(batch_size=0), ["data.batch_size=0", "at least 1"]),
    (lambda: DataConfig(validation_fraction=2.0), ["data.validation_fraction=2.0", "between 0 and 1"]),
    (lambda: OptimizerConfig(lr=0.0), ["optimizer.lr=0.0", "positive"]),
    (lambda: DataConfig(path="books/*.txt"), ["data.path='books/*.txt'", "needs data=text_files"]),
    (lambda: OptimizerConfig(lr=math.nan), ["optimizer.lr=nan", "positive"]),
    (lambda: OptimizerConfig(lr=math.inf), ["optimizer.lr=inf", "finite"]),
    (lambda: OptimizerConfig(beta1=2.0), ["optimizer.beta1=2.0", "below 1"]),
    (lambda: TrainerConfig(), ["trainer.max_steps", "trainer.max_tokens", "exactly one"]),
    (lambda: TrainerConfig(max_steps=1, max_tokens=1), ["trainer.max_steps", "trainer.max_tokens"]),
    (lambda: TrainerConfig(max_flops=1e9, max_tokens=1), ["trainer.max_flops", "exactly one"]),
    (
        lambda: Config(
            model=ModelConfig(moe=MoeConfig(balance_scope=BalanceScope.batch)),
            trainer=TrainerConfig(max_steps=1, micro_batch_size=2),
        ),
        ["model.moe.balance_scope=batch", "trainer.micro_batch_size=2"],
    ),
    (lambda: Config(scale=0.0), ["scale=0.0", "positive"]),
    (lambda: TrainerConfig(max_steps=0), ["trainer.max_steps=0", "at least 1"]),
    (lambda: TrainerConfig(max_steps=1, save_every=0), ["trainer.save_every=0", "at least 1"]),
    (lambda: TrainerConfig(max_steps=1, sample_every=-1), ["trainer.sample_every=-1"]),
    (lambda: TensorboardConfig(flush_seconds=-3), ["logger.tensorboard.flush_seconds=-3", "at least 1"]),
    (lambda: Config(seed=2**32), ["seed=4294967296", "4294967295"]),
    (lambda: Config(run_dir=""), ["run_dir is empty"]),
    (
        lambda: Config(data=DataConfig(sequence_length=5000)),
        ["data.sequence_length=5000", "model.max_seq_len=4096"],
    ),
    (
        lambda: Config(data=DataConfig(sequence_length=2), model=ModelConfig(mtp=MtpConfig(depth=2))),
        ["data.sequence_length=2", "model.mtp.depth=2"],
    ),
]


@pytest.mark.parametrize(("build", "words"), CONTRADICTIONS)
def test_contradiction_is_refused_and_named(build: Callable[[], object], words: list[str]) -> None:
    with pytest.raises(
        ValueError, match=r"model|schedule|trainer|data|optimizer|logger|seed|scale|run_dir"
    ) as caught:
        build()
    for word in words:
        assert word in str(caught.value)


def test_legal_neighbours_of_the_contradictions_are_accepted() -> None:
    ModelConfig(n_routed_experts=16, n_limited_groups=2, n_activated_experts=4)
    ModelConfig(n_routed_experts=8, n_activated_experts=4, group_score=GroupScore.max)
    ModelConfig(n_heads=6, n_kv_heads=4)
    ModelConfig(n_dense_layers=61)
    ScheduleConfig(lr=[Phase(until=0.5), Phase(value=0.0, shape=Shape.linear)])
    DataConfig(source=Source.text_files, path="books/*.txt")
    Config(data=DataConfig(sequence_length=4096), seed=2**32 - 1)


@pytest.mark.parametrize(("balance", "weight"), [("bias", 0.1), ("aux_loss", 0.2), ("none", 0.0)])
def test_weight_of_the_auxiliary_loss_follows_the_balancing(balance: str, weight: float) -> None:
    moe = MoeConfig(balance=Balance(balance), sequence_loss_weight=0.1, aux_loss_weight=0.2)
    assert ModelConfig(moe=moe).balance_loss_weight == weight


def test_schema_imports_nothing_but_the_standard_library() -> None:
    code = (
        "import sys; import deepseek_mini.config; "
        "print([name for name in ('torch', 'hydra', 'omegaconf', 'numpy') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
