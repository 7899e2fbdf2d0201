"""Guards of a run: numbers that are not finite, and requests to stop."""

import signal
from types import FrameType

import torch
from torch import Tensor, nn


class NonFinite(Exception):
    """The loss or a gradient is NaN or infinite; the weights have not been touched."""


def check_finite(model: nn.Module, loss: Tensor, grad_norm: Tensor) -> None:
    """Raise NonFinite unless loss and gradient norm are finite, naming the parameter that went first."""
    if torch.isfinite(torch.stack((loss, grad_norm))).all():
        return
    raise NonFinite(
        f"loss {loss.item():.4g}, gradient norm {grad_norm.item():.4g}; {first_non_finite(model)}"
    )


def first_non_finite(model: nn.Module) -> str:
    """Where the trouble began: a weight that was not finite already, else the first gradient backwards."""
    parameters = list(model.named_parameters())
    for name, parameter in parameters:
        if not torch.isfinite(parameter).all():
            return f"first among the weights: {name}"
    for name, parameter in reversed(parameters):
        if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
            return f"first among the gradients, from the head backwards: {name}"
    return "all weights and gradients are finite: the loss itself overflowed"


class StopRequest:
    """Notes the first Ctrl-C or SIGTERM, so that the loop can finish its step; the second one interrupts."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)
