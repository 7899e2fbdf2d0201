import pytest
import torch

from deepseek_mini.config import Attention, ModelConfig
from deepseek_mini.model.transformer import _fill_normal, build_model
from model.helpers import tiny, tiny_mtp

CPU = torch.device("cpu")


def start(config: ModelConfig, seed: int = 0) -> dict[str, torch.Tensor]:
    return build_model(config, CPU, seed).state_dict()


def test_every_matrix_starts_normal_with_std_0_006_norms_at_one_biases_at_zero() -> None:
    config = ModelConfig(
        vocab_size=128, dim=64, inter_dim=64, moe_inter_dim=64, n_layers=2, n_dense_layers=1, n_heads=2,
        n_routed_experts=16, q_lora_rank=64, kv_lora_rank=64,
        qk_nope_head_dim=32, qk_rope_head_dim=32, v_head_dim=32,
    )  # fmt: skip
    for name, values in start(config).items():
        if name.endswith("gate.bias"):
            assert (values == 0).all()
        elif "norm" in name:
            assert (values == 1).all(), name
        else:
            for matrix in values if values.ndim == 3 else [values]:
                tolerance = 5 * 0.006 / matrix.numel() ** 0.5
                assert abs(matrix.mean()) < tolerance, name
                assert abs(matrix.std() - 0.006) < tolerance, name


def test_no_two_parameters_or_experts_start_alike() -> None:
    state = start(tiny_mtp(2, n_layers=3))
    matrices = [m for p in state.values() if p.ndim >= 2 for m in (p if p.ndim == 3 else [p])]
    firsts = [matrix.flatten()[0].item() for matrix in matrices]
    assert len(set(firsts)) == len(firsts)


CHANGES = {
    "mtp.": (tiny_mtp(1), tiny_mtp(0)),
    "mtp.1.": (tiny_mtp(2), tiny_mtp(1)),
    ".attn.": (tiny(), tiny(attention=Attention.mha)),
    ".wq": (tiny(), tiny(q_lora_rank=0)),
    ".shared_experts.": (tiny(), tiny(n_shared_experts=0)),
    "layers.2.": (tiny(n_layers=3), tiny(n_layers=2)),
    "layers.1.ffn.": (tiny(n_dense_layers=1), tiny(n_dense_layers=2)),
}


@pytest.mark.parametrize("changed", CHANGES)
def test_changing_one_part_leaves_the_start_of_all_others(changed: str) -> None:
    before, after = (start(config) for config in CHANGES[changed])
    names = {name for name in before | after if changed not in name and "q_norm" not in name}
    assert names
    for name in names:
        assert torch.equal(before[name], after[name]), name


def test_each_expert_draws_from_a_generator_of_its_own_name() -> None:
    """So that it starts the same wherever it is held, alone or in a stack of any size."""
    state = start(tiny())
    for stack in ("w1", "w2", "w3"):
        name = f"layers.1.ffn.experts.{stack}"
        for expert, matrix in enumerate(state[name]):
            alone = torch.empty(matrix.shape)
            _fill_normal(alone, 0.006, 0, f"{name}.{expert}")
            assert torch.equal(matrix, alone)


def test_noise_disturbs_each_weight_by_its_share_and_norms_not_at_all() -> None:
    clean, noisy = start(tiny()), start(tiny(init_noise=1e-3))
    for name, values in clean.items():
        if "norm" in name or name.endswith("bias"):
            assert torch.equal(values, noisy[name]), name
        else:
            shares = (noisy[name] / values - 1).flatten()
            assert shares.std() == pytest.approx(1e-3, rel=0.5), name
            assert shares.count_nonzero() > 0.9 * shares.numel(), name


def test_the_seed_decides_the_start() -> None:
    first, again, other = start(tiny()), start(tiny()), start(tiny(), seed=1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first if first[name].ndim > 1)


def test_the_start_ignores_and_leaves_the_global_generator() -> None:
    torch.manual_seed(1)
    first = start(tiny())
    drawn = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), drawn)
    assert torch.equal(start(tiny())["embed.weight"], first["embed.weight"])
