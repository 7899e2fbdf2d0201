"""Guards of a run: numbers that are not finite, spikes, and requests to stop."""

import math
import signal
import statistics
from collections import deque
from collections.abc import Sequence
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

SPIKES = {"train/main_loss": 1.5, "optim/grad_norm": 5.0}
"""Figure -> how many times its running median is a spike."""
MEDIAN_STEPS = 32
FEWEST_STEPS = 8
"""Before so many there is no median to speak of."""


class NonFinite(Exception):
    """The loss or a gradient is NaN or infinite; the weights have not been touched."""


def guard_update(
    model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], loss: Tensor, grad_norm: Tensor
) -> float | Tensor:
    """Nothing is updated from numbers that are not finite. The factor, 1 or 0, on what no optimizer updates.

    On a CPU, where reading them costs nothing, raises NonFinite. A GPU would have to be waited for: there
    the device voids the update, and whoever reads the figures later raises.
    """
    if loss.device.type == "cpu":
        check_finite(model, loss.item(), grad_norm.item())
        return 1.0
    return void_unless_finite(optimizers, loss, grad_norm)


def void_unless_finite(
    optimizers: Sequence[torch.optim.Optimizer], loss: Tensor, grad_norm: Tensor
) -> Tensor:
    """Without the host's knowledge, void this update and all later ones; the factor that remains, 1 or 0.

    Optimizers skip theirs by PyTorch's own protocol for gradient scaling, `found_inf`.
    """
    void = (~torch.isfinite(torch.stack((loss, grad_norm))).all()).float()
    for optimizer in optimizers:
        void = torch.maximum(void, getattr(optimizer, "found_inf", void))
        optimizer.found_inf = void  # pyright: ignore[reportAttributeAccessIssue]
    return 1.0 - void


def check_finite(model: nn.Module, loss: float, grad_norm: float) -> None:
    """Raise NonFinite unless loss and gradient norm are finite, naming the parameter that went first.

    Gradients are looked for in `model`: where they are gone by now, only weights can be named.
    """
    if not (math.isfinite(loss) and math.isfinite(grad_norm)):
        raise NonFinite(f"loss {loss:.4g}, gradient norm {grad_norm:.4g}; {first_non_finite(model)}")


def first_non_finite(model: nn.Module) -> str:
    """Where the trouble began: a weight that was not finite already, else the first gradient backwards."""
    parameters = list(model.named_parameters())
    for name, parameter in parameters:
        if not torch.isfinite(parameter).all():
            return f"first among the weights: {name}"
    for name, parameter in reversed(parameters):
        if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
            return f"first among the gradients, from the head backwards: {name}"
    return "all weights and gradients at hand are finite"


class SpikeWatch:
    """Tells of steps whose figures jump far above their running median; a resumed run watches anew."""

    def __init__(self) -> None:
        self._recent = {name: deque[float](maxlen=MEDIAN_STEPS) for name in SPIKES}

    def look(self, metrics: dict[str, Any]) -> list[str]:
        """The spikes of the next step, in words."""
        found = []
        for name, recent in self._recent.items():
            value, usual = metrics[name], statistics.median(recent) if recent else 0.0
            if len(recent) >= FEWEST_STEPS and value > SPIKES[name] * usual:
                found.append(f"{name} is {value:.3g}, its median of {len(recent)} steps {usual:.3g}")
            recent.append(value)
        return found


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
