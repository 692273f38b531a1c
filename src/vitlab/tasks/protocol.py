"""What callbacks may ask of a task."""

from collections.abc import Callable
from typing import Any, Protocol, cast

import lightning as L
from torch import nn


class Task(Protocol):
    """What callbacks read of the LightningModule that is trained.

    Attributes:
        net: images (B, C, H, W) → logits (B, K).
        schedule: (optimizer step, total steps) → multiplier of the learning rate.
        total_steps: optimizer steps of the whole run.
        meta: plain values that every checkpoint carries.
    """

    net: nn.Module
    schedule: Callable[[int, int], float]
    total_steps: int
    meta: dict[str, Any]


def task_of(trainer: L.Trainer) -> Task:
    """Return the task that a Trainer trains, as what it is here."""
    return cast(Task, trainer.lightning_module)
