"""Each popular wrong claim about V3, beside what the model says."""

from functools import cache
from pathlib import Path

import pytest

from deepseek_mini.compose import compose
from deepseek_mini.cost.claim import Claim, Verdict
from deepseek_mini.cost.claims import popular_claims
from deepseek_mini.cost.plan import make_plan, parse_cluster

PAGE = Path(__file__).resolve().parents[2] / "docs" / "results" / "claims.md"
HOURS = {
    "pre-training at the steady rate": 2.52e6,
    "batch ramp": 16e3,
    "context extension to 32K": 29e3,
    "context extension to 128K": 75e3,
    "post-training": 5.1e3,
    "restarts, waiting, checkpoints": 350e3,
}


@cache
def claims() -> dict[str, Claim]:
    config = compose(["model=v3_671b"]).config
    plan = make_plan("v3_671b", config, parse_cluster("h800_2048"))
    return {claim.claim: claim for claim in popular_claims(config.model, HOURS, plan.later, 0.075)}


@pytest.mark.parametrize(
    ("start", "model", "relative"),
    [
        ("MLA compresses to a 64-dimensional", 512, 0),
        ("MLA cuts the KV cache by 68%", 0.9824, 1e-4),
        ("MLA compresses the KV cache by 93%", 0.9824, 1e-4),
        ("FP8 forward, FP16 backward", 1015, 1e-3),
        ("FP8 with dynamic per-tensor scaling", 56, 0),
        ("device-limited routing: 83% less", 0.31, 0.02),
        ("MTP makes training 1.5 times", 1 / 1.0408, 1e-4),
        ("V3 takes 120 to 150 GFLOP", 249.81e9, 1e-5),
        ("a dense 671B model takes 2 TFLOP", 4.03e12, 1e-3),
        ("V3 has 685B parameters", 671_026_419_200, 0),
        ("curriculum: 10T tokens at 4K, 400B", 62.9e9, 1e-3),
        ("fine-tuning took 100K", 5.1e3, 0),
        ("reinforcement learning took 24K", 5.1e3, 0),
        ("0.4M GPU-hours would do", 0.26e6, 0.01),
        ("8.33e8 GPU-seconds", 0.23e6, 0.01),
        ("Llama 3.1 405B cost $8M to $12M", 61.7e6, 1e-3),
        ("V3 took 40% fewer GPU-hours", 1 - 2.788 / 2.90, 0.05),
        ("pre-training took 2.788M", 2.52e6, 0),
        ("V3 has no auxiliary loss", 1e-4, 0),
        ("DualPipe leaves no bubbles", 0.075, 0),
    ],
)
def test_the_model_contradicts_it(start: str, model: float, relative: float) -> None:
    (claim,) = (claim for text, claim in claims().items() if text.startswith(start))
    assert claim.model == pytest.approx(model, rel=relative or 1e-12)
    assert claim.verdict is not Verdict.confirmed
    assert claim.claimed == 0 or abs(claim.model / claim.claimed - 1) > 0.015
    assert claim.says
    assert claim.published


CONFIRMED = [
    ("V3's cache takes 70 KB", 70_272, 0.005),
    ("V3 activates 37B", 37_552_297_472, 0.02),
    ("FP8 doubles the peak", 2.0, 1e-3),
    ("MTP makes decoding 1.8 times as fast", 1.80, 0.01),
    ("V3 cost $5.576M", 5.29e6, 0.06),
    ("Llama 3.1 405B took 30.84M", 30.84e6, 1e-12),
]


@pytest.mark.parametrize(("start", "model", "away"), CONFIRMED)
def test_the_model_agrees_with_it(start: str, model: float, away: float) -> None:
    (claim,) = (claim for text, claim in claims().items() if text.startswith(start))
    assert claim.verdict is Verdict.confirmed
    assert claim.model == pytest.approx(model, rel=1e-3)
    assert claim.claimed == pytest.approx(claim.model, rel=away)


def test_only_runs_can_tell_what_balancing_costs() -> None:
    (claim,) = (claim for claim in claims().values() if claim.model is None)
    assert claim.claim == "biases balance the experts at no cost in loss"


def test_no_claim_is_without_a_test() -> None:
    assert len(claims()) == 20 + len(CONFIRMED) + 1


def test_the_backward_products_of_the_trace_are_faster_than_16_bits_can_be() -> None:
    claim = claims()["FP8 forward, FP16 backward"]
    assert claim.claimed is not None
    assert claim.model > claim.claimed == 989.4


def test_the_page_in_the_docs_has_every_claim_with_its_verdict() -> None:
    """It is written by scripts/reproduce_claims.py; a claim that changes has to be written again."""
    page = PAGE.read_text()
    for claim in claims().values():
        assert f"| {claim.claim} | **{claim.verdict}** | {claim.published} |" in page
