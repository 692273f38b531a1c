"""Float16 with dynamic loss scaling, and how many optimizer steps it cost."""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor
from torch.optim import Optimizer


class CountingScaler(torch.amp.GradScaler):
    """torch's scaler, which counts the optimizer steps that it skips.

    The loss is multiplied by a scale before the backward pass, so that small gradients do not become zero in
    float16 (Micikevicius et al. 2018, section 3.2). Where that makes a gradient infinite the weights stay as
    they are, and the scale halves; after 2,000 good steps it doubles. A skipped step counts as a step all the
    same: the learning rates, the order of the images and the length of a run do not depend on the scale.
    """

    skipped: Tensor | float = 0.0  # since the run began; on the device: to read it would make the host wait

    def step(self, optimizer: Optimizer, *args: Any, **kwargs: Any) -> Any:
        """Step the optimizer, or skip the step and count it."""
        result = super().step(optimizer, *args, **kwargs)
        self.skipped = self.skipped + sum(self._found_inf_per_device(optimizer).values())
        return result

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"skipped": float(self.skipped)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.skipped = state_dict["skipped"]


def float16_plugin(kind: str) -> MixedPrecision:
    """Return what makes Lightning's Trainer compute in float16 on devices of ``kind`` ("cuda")."""
    return MixedPrecision("16-mixed", kind, CountingScaler(kind))


def skipped_steps(trainer: L.Trainer) -> int | None:
    """Return the optimizer steps that overflowed since the run began; None where nothing is scaled."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return int(scaler.skipped) if isinstance(scaler, CountingScaler) else None


class SkippedSteps(L.Callback):
    """Log the steps that were skipped in each epoch, as ``train/skipped_steps``, under 16-mixed."""

    def __init__(self) -> None:
        self._before = 0  # this epoch

    def state_dict(self) -> dict[str, Any]:
        return {"before": self._before}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._before = state_dict["before"]

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        total = skipped_steps(trainer)
        assert total is not None
        pl_module.log("train/skipped_steps", float(total - self._before))
        self._before = total
