"""Greedy text against transformers' generate() on the exported model, token for token."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from deepseek_mini.config import ModelConfig, MtpConfig
from deepseek_mini.inference.generate import generate
from deepseek_mini.inference.load import load_model
from deepseek_mini.inference.sampling import Sampling
from deepseek_mini.interop.export import Encoding, export_run
from interop.helpers import random_model, save_run

N_NEW = 200
BASE: dict[str, Any] = {
    "vocab_size": 131, "dim": 48, "inter_dim": 64, "moe_inter_dim": 24, "n_layers": 3, "n_dense_layers": 1,
    "n_heads": 3, "n_routed_experts": 16, "n_activated_experts": 3, "n_expert_groups": 4,
    "n_limited_groups": 2, "q_lora_rank": 20, "kv_lora_rank": 24, "qk_nope_head_dim": 10,
    "qk_rope_head_dim": 6, "v_head_dim": 14, "original_seq_len": 256, "max_seq_len": 256,
    "mtp": MtpConfig(depth=1),
}  # fmt: skip
CHANGES: dict[str, dict[str, Any]] = {
    "query latent": {},
    "direct query": {"q_lora_rank": 0},
    "YaRN beyond the original length": {"original_seq_len": 64, "rope_factor": 4.0},
}


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_200_greedy_tokens_of_several_prompts_are_those_of_transformers(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    model = random_model(ModelConfig(**(BASE | changes)), seed=1)
    run_dir = save_run(tmp_path / "run", model)
    export_run(run_dir, tmp_path / "out", Encoding())
    peer = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(0)
    prompts_BT = torch.randint(131, (3, 9), generator=generator)
    expected = peer.generate(
        prompts_BT,
        attention_mask=torch.ones_like(prompts_BT),
        max_new_tokens=N_NEW,
        do_sample=False,
        pad_token_id=0,
    )[:, 9:].tolist()
    prompts = prompts_BT.tolist()
    assert [len(ids) for ids in expected] == [N_NEW] * 3
    assert all(len(set(ids)) > 5 for ids in expected)
    loaded = load_model(run_dir, model.config, torch.device("cpu"))
    assert generate(loaded, prompts, N_NEW, Sampling(0)) == expected
    assert generate(loaded, prompts, N_NEW, Sampling(0), speculative=True) == expected
