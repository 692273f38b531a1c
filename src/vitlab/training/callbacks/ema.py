"""An exponential moving average of the weights, which is validated, tested and kept in their place."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor

from vitlab.core.checkpoint import RAW
from vitlab.tasks.protocol import task_of


def decay_at(step: int, decay: float, warmup: bool) -> float:
    """Return the decay of the update after optimizer step ``step``, counted from 0.

    With ``warmup`` min(decay, (1 + step) / (10 + step)): at first the average follows the weights closely,
    and it never spans more than about a ninth of the steps so far. Source: the documentation of TensorFlow's
    ``tf.train.ExponentialMovingAverage``, argument ``num_updates``.
    """
    return min(decay, (1 + step) / (10 + step)) if warmup else decay


def describe_average(steps: int, decay: float, warmup: bool) -> str:
    """Return what is averaged in a run of so many optimizer steps, for the log."""
    last = decay_at(steps - 1, decay, warmup)
    ramp = f" (warmup: {last:.4g} at the last step)" if last < decay else ""
    return f"of the weights, decay {decay:g}{ramp}; validated, tested and saved in their place"


def ema_notes(ema: Mapping[str, Any], steps: int, overrides: Sequence[str]) -> Iterator[str]:
    """Yield what is doubtful about the ``ema`` node in a run of so many steps, or without effect."""
    decay = ema["decay"]
    if decay is None:
        if any(typed.startswith("callbacks.ema.warmup") for typed in overrides):
            yield "callbacks.ema.warmup has no effect without callbacks.ema.decay."
    elif not ema["warmup"] and steps * (1 - decay) < 1:
        yield (
            f"callbacks.ema.decay={decay:g} averages about {1 / (1 - decay):,.0f} steps, and the run has "
            f"{steps:,}: much of the average will be the random start. Set callbacks.ema.warmup=true, or a "
            f"decay under {1 - 1 / steps:.4g}."
        )


class EMA(L.Callback):
    """Average the weights of ``task.net``: average ← d · average + (1 - d) · weights, an optimizer step.

    The optimizer continues with the raw weights. The network holds the average while it is validated and when
    training has ended, and a checkpoint has it as ``state_dict``, so that whoever reads a run gets it; the
    raw weights are beside it under `RAW`. BatchNorm's statistics are averaged too; integers, which count,
    are not, and neither is anything of the task outside ``net`` (a teacher). The average is float32 at
    least: in bfloat16 an update by 1 - d would be rounded away.

    It helps where the weights still jump about their mean: at high rates and with small batches. Source:
    Polyak & Juditsky 1992; Szegedy et al. 2016, section 8 (networks evaluated with it).

    Args:
        decay: d, in [0, 1).
        warmup: start with a smaller one, see `decay_at`.
    """

    def __init__(self, *, decay: float, warmup: bool) -> None:
        self.decay = decay
        self.warmup = warmup
        self.average: dict[str, Tensor] = {}  # by the names in the task's state
        self._weights: list[Tensor] = []  # the network's own tensors, in the same order
        self._raw: list[Tensor] = []  # what they hold otherwise, while they hold the average
        self._updates = 0

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self._updates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._updates = state_dict["updates"]

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Only now, as the network is on its device. Its tensors stay: steps and loading fill them in place.
        state: dict[str, Tensor] = task_of(trainer).net.state_dict(prefix="net.")
        weights = {name: value for name, value in state.items() if value.is_floating_point()}
        self._weights = list(weights.values())
        self.average = {
            name: self.average.get(name, value).to(
                value.device, torch.promote_types(value.dtype, torch.float32), copy=True
            )
            for name, value in weights.items()
        }

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step == self._updates:  # between two micro-batches
            return
        average = list(self.average.values())
        weights = [w.to(a.dtype) for w, a in zip(self._weights, average, strict=True)]
        torch._foreach_lerp_(average, weights, 1 - decay_at(self._updates, self.decay, self.warmup))
        self._updates = trainer.global_step

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._raw = [weight.clone() for weight in self._weights]
        torch._foreach_copy_(self._weights, list(self.average.values()))

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        torch._foreach_copy_(self._weights, self._raw)
        self._raw = []

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Not `on_train_end`: a run that resumes when all is trained has none.
        pl_module.load_state_dict(self.average, strict=False)

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint[RAW] = checkpoint["state_dict"]
        checkpoint["state_dict"] = checkpoint[RAW] | self.average

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self.average = checkpoint["state_dict"]
        pl_module.load_state_dict(checkpoint[RAW])
