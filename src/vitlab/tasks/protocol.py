"""What callbacks may ask of a task."""

from collections.abc import Callable
from typing import Protocol, cast

import lightning as L
from torch import Tensor, nn
from torch.optim import Optimizer


class Task(Protocol):
    """What the machinery of a run reads of the LightningModule that it trains.

    Attributes:
        net: images (B, C, H, W) → logits (B, K).
        built_optimizer: of the parameters that are trained; Lightning steps it.
        schedule: (optimizer step, total steps) → multiplier of the learning rate.
        total_steps: optimizer steps of the whole run.
        confusion_counts: (K, K), rows the truth, columns the prediction; after a test.
    """

    net: nn.Module
    built_optimizer: Optimizer
    schedule: Callable[[int, int], float]
    total_steps: int
    confusion_counts: Tensor

    def check_finite(self) -> None:
        """Raise `Diverged` if a loss of this epoch or a weight is not finite."""
        ...


def as_task(module: L.LightningModule) -> Task:
    """Return the module that Lightning hands to a callback as what it is here."""
    return cast(Task, module)
