"""Popular claims about the hours and dollars of V3's run; the others are in `claims`."""

from deepseek_mini.config import ModelConfig
from deepseek_mini.cost.claim import Claim, Topic, Verdict
from deepseek_mini.cost.devices import find_gpu
from deepseek_mini.cost.flops import flops_per_token
from deepseek_mini.cost.plan import LaterStage
from deepseek_mini.cost.run_model import LOST
from deepseek_mini.cost.runs import parse_runs
from deepseek_mini.cost.tables import read_table

TOKENS = 14.8e12
LENGTH = 4096
SPARSE_FP8 = 3957.8e12
"""FLOP/s of an H800 with 2:4 sparsity, which does not apply to dense training (H100 SXM data sheet)."""


def stage_claims(hours: dict[str, float], later: tuple[LaterStage, ...]) -> list[Claim]:
    extension = [stage for stage in later if "extension" in stage.name]
    tokens = {stage.sequence_length: stage.tokens for stage in extension}
    extension_hours = sum(hours[stage.name] for stage in extension)
    post = hours["post-training"]
    shown = (
        f"{post / 1e3:.1f}K, reinforcement learning not counted; context extension takes "
        f"{extension_hours / 1e3:.0f}K"
    )
    return [
        Claim(
            Topic.cost,
            "curriculum: 10T tokens at 4K, 400B at 32K, 60B at 128K",
            400e9,
            Verdict.corrected,
            "4K for all 14.8T, then 1,000 steps each at 32K and 128K (V3 4.2, 4.3)",
            tokens[32768],
            f"all 14.8T at 4K, then 1,000 steps each: {tokens[32768] / 1e9:.1f}B at 32K, "
            f"{tokens[131072] / 1e9:.1f}B at 128K",
        ),
        Claim(
            Topic.cost,
            "fine-tuning took 100K GPU-hours",
            100e3,
            Verdict.corrected,
            "all post-training 5K; 119K is context extension (V3 table 1)",
            post,
            shown,
        ),
        Claim(
            Topic.cost,
            "reinforcement learning took 24K GPU-hours",
            24e3,
            Verdict.corrected,
            "all post-training 5K (V3 table 1)",
            post,
            f"{shown}; 5K is published for all of it",
        ),
    ]


def cost_claims(config: ModelConfig, hours: dict[str, float]) -> list[Claim]:
    flops, h800 = TOKENS * flops_per_token(config, LENGTH), find_gpu("h800")
    peak = (h800.bf16 or 0) * 1e12
    bf16, fp8, sparse = (flops / rate / 3600 for rate in (peak, (h800.fp8 or 0) * 1e12, SPARSE_FP8))
    llama = next(run for run in parse_runs(read_table("published_runs"))[0] if run.model == "Llama-3.1-405B")
    assert llama.gpu_hours is not None
    scaled = llama.gpu_hours * flops / llama.flops
    steady = next(iter(hours.values()))
    others = sum(list(hours.values())[1:])
    rented = 2 * sum(n for name, n in hours.items() if name != LOST)
    return [
        Claim(
            Topic.cost,
            "0.4M GPU-hours would do at perfect efficiency (3,958 TFLOPS)",
            0.4e6,
            Verdict.corrected,
            "3,958 is the peak of 2:4-sparse products (H100 data sheet)",
            sparse,
            f"{sparse / 1e6:.2f}M at that peak, which is for sparse products; {fp8 / 1e6:.2f}M at the dense "
            f"FP8 peak, {bf16 / 1e6:.2f}M at BF16's",
        ),
        Claim(
            Topic.cost,
            "8.33e8 GPU-seconds are 0.4M GPU-hours",
            0.4e6,
            Verdict.corrected,
            "arithmetic",
            8.33e8 / 3600,
            f"{8.33e8 / 3600 / 1e6:.2f}M, by arithmetic",
        ),
        Claim(
            Topic.cost,
            "Llama 3.1 405B cost $8M to $12M",
            12e6,
            Verdict.corrected,
            "30.84M GPU-hours, no price (model card)",
            llama.gpu_hours * 2,
            f"30.84M GPU-hours are ${llama.gpu_hours * 2 / 1e6:.1f}M at $2",
        ),
        Claim(
            Topic.cost,
            "V3 took 40% fewer GPU-hours than Llama's efficiency would",
            0.4,
            Verdict.unsupported,
            "no such figure",
            1 - 2.788e6 / scaled,
            f"Llama 405B's hours scaled by exact FLOPs are {scaled / 1e6:.2f}M: V3's 2.79M are "
            f"{1 - 2.788e6 / scaled:.0%} fewer",
        ),
        Claim(
            Topic.cost,
            "pre-training took 2.788M GPU-hours",
            2.788e6,
            Verdict.corrected,
            "2.664M; 2.788M is the total (V3 table 1)",
            steady,
            f"{steady / 1e6:.2f}M at the steady rate; {others / 1e6:.2f}M for all else, restarts included",
        ),
        Claim(
            Topic.cost,
            "V3 cost $5.576M",
            5.576e6,
            Verdict.confirmed,
            "2.788M GPU-hours at $2, research and failed runs not counted (V3 table 1)",
            rented,
            f"${rented / 1e6:.2f}M at $2, restarts and waiting not counted either",
        ),
        Claim(
            Topic.cost,
            "Llama 3.1 405B took 30.84M GPU-hours",
            30.84e6,
            Verdict.confirmed,
            "30.84M, on H100 (model card)",
            llama.gpu_hours,
            f"that is {llama.flops / (llama.gpu_hours * 3600 * peak):.0%} of the BF16 peak",
        ),
    ]
