"""What the tests of the GPU's paths run in a process of their own: prints as JSON what each case did."""

import dataclasses
import json
import sys
from typing import Any
from unittest import mock

import torch

from deepseek_mini.config import ModelConfig, Optimizer, OptimizerConfig, Recompute
from deepseek_mini.data import Batch
from deepseek_mini.inference.decode import Decoder
from deepseek_mini.inference.sampling import Sampling
from deepseek_mini.model.recompute import recompute
from deepseek_mini.model.transformer import Transformer, build_on_meta
from deepseek_mini.optim.build import build_optimizers
from deepseek_mini.optim.schedule import StepPlan
from deepseek_mini.training import step
from fake_gpu import GPU, FakeGpu, register
from small_model import small_model_config

PLAN = StepPlan(1, 0, 6, 0, lr=1e-3, mtp_weight=0.3, bias_update_rate=0.01)


def model_config() -> ModelConfig:
    """Rows of 16 bytes at least, as grouped products want them."""
    return dataclasses.replace(small_model_config(depth=1), dim=32, moe_inter_dim=16, n_layers=2)


def on_gpu(gpu: FakeGpu) -> Transformer:
    model = build_on_meta(model_config())
    gpu.adopt(model)
    return model


def train(optimizer: Optimizer, again: Recompute, document_mask: bool) -> dict[str, Any]:
    """A step of two micro-batches."""
    tokens_BS = torch.randint(61, (2, 18))
    batch = Batch(tokens_BS, torch.arange(18).div(5, rounding_mode="floor").expand(2, -1))
    counts = step.count_targets(batch, 1)  # of real numbers, from the CPU
    autocast = torch.autocast(GPU, torch.bfloat16)
    with FakeGpu() as gpu, mock.patch.object(step, "count_targets", lambda batch, _: of_cpu(batch, counts)):
        model = on_gpu(gpu)
        recompute(model, again)
        optimizers = build_optimizers(model, OptimizerConfig(name=optimizer))
        step.train_step(model, optimizers, batch, PLAN, 1, 1.0, autocast, document_mask)
    casts = {name: gpu.casts(parameter) for name, parameter in model.named_parameters()}
    return {"crossings": gpu.crossings, "grouped": gpu.count("_grouped_mm"), "casts": casts}


def of_cpu(batch: Batch, counts: step.StepCounts) -> step.StepCounts:
    assert batch.tokens_BS.device.type == "cpu"
    return counts


def decode() -> dict[str, Any]:
    """Tokens one by one after a prompt: all that a graph would hold."""
    with FakeGpu() as gpu, torch.inference_mode(), torch.autocast(GPU, torch.bfloat16):
        model = on_gpu(gpu)
        decoder = Decoder(model, n_rows=2, capacity=1000, sampling=Sampling())
        decoder.read([[1, 2, 3], [4, 5]])
        gpu.uploads.clear()
        shapes = []
        for _ in range(2):
            gpu.take_shapes()
            decoder.step()
            shapes.append(gpu.take_shapes())
    return {
        "crossings": gpu.crossings,
        "uploads": gpu.uploads,
        "operations": len(shapes[0]),
        "repeats": shapes[0] == shapes[1],
    }


def offend() -> dict[str, Any]:
    """What must be noticed."""
    with FakeGpu() as gpu:
        x = torch.zeros(3, device=GPU)
        errors = []
        for offence in (lambda: x.sum().item(), lambda: x.tolist(), lambda: x[x > 0], lambda: bool(x.any())):
            try:
                offence()
            except Exception as error:
                errors.append(type(error).__name__)
        x.cpu()
        torch.zeros(3).to(GPU)
        torch.zeros(3).to(GPU, non_blocking=True)
    return {"errors": errors, "crossings": gpu.crossings, "uploads": gpu.uploads}


def main() -> None:
    kept = register()
    cases = {"offend": offend()}
    cases["adamw"] = train(Optimizer.adamw, Recompute.none, document_mask=True)
    cases["muon"] = train(Optimizer.muon, Recompute.v3, document_mask=False)
    cases["decode"] = decode()
    sys.stdout.write(json.dumps(cases))
    del kept


if __name__ == "__main__":
    main()
