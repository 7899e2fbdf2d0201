"""Steps whose figures have not been read from the device yet."""

import time
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from deepseek_mini.optim.schedule import StepPlan
from deepseek_mini.training.step import StepResult


class Figures(NamedTuple):
    """A step's result in numbers."""

    loss: float
    main_loss: float
    mtp_loss: float | None
    grad_norm: float


@dataclass(slots=True)
class Unread:
    """The steps since the last reading."""

    steps: list[tuple[StepPlan, StepResult]] = field(default_factory=list)
    begin: float = 0.0
    """When the first of them began, by `time.perf_counter`."""
    data_wait: float = 0.0
    """Seconds that they waited for their batches."""

    def begin_step(self) -> None:
        if not self.steps:
            self.begin = time.perf_counter()

    def read(self) -> list[Figures]:
        """One transfer for all steps; a GPU is waited for until the last one is done."""
        rows = torch.stack([_row(result) for _, result in self.steps]).tolist()
        has_mtp = [result.mtp_loss is not None for _, result in self.steps]
        return [
            Figures(loss, main, mtp if has else None, norm)
            for (loss, main, mtp, norm), has in zip(rows, has_mtp, strict=True)
        ]


def _row(result: StepResult) -> Tensor:
    mtp_loss = result.main_loss if result.mtp_loss is None else result.mtp_loss
    return torch.stack((result.loss, result.main_loss, mtp_loss, result.grad_norm))
