"""The arithmetic of a run: batches, optimizer steps, warmup. Torch-free."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vitlab.errors import UserError

# The batch size at which ViT recipes are usually tuned; DeiT scales its learning rate from it (Touvron et
# al. 2021, section 6: lr = 5e-4 × batch / 512).
VIT_BATCH = 512


@dataclass(frozen=True)
class Plan:
    """Counts for the whole run, over all processes."""

    batch_size: int
    accumulate: int
    batches_per_epoch: int
    epochs: int
    total_steps: int
    warmup_steps: int

    @property
    def effective_batch(self) -> int:
        return self.batch_size * self.accumulate

    def advice(self) -> str | None:
        """Say what to change where the effective batch is small for a ViT."""
        if self.effective_batch >= VIT_BATCH:
            return None
        times = math.ceil(VIT_BATCH / self.batch_size)
        return (
            f"effective batch {self.effective_batch} is under the {VIT_BATCH} that ViT recipes are tuned "
            f"for: try trainer.accumulate_grad_batches={times}, or data.batch_size={VIT_BATCH} where "
            "memory allows"
        )


def limited(batches: int, limit: float | int | None) -> int:
    """Apply one of Lightning's ``limit_*_batches``: an int counts batches, a float is a share."""
    if limit is None:
        return batches
    return min(batches, limit) if isinstance(limit, int) else int(batches * limit)


def make_plan(config: Mapping[str, Any], num_train: int) -> Plan:
    """Work out the run of ``config`` on ``num_train`` training images.

    Raises:
        UserError: there is not one batch, or an explicit warmup is longer than the run.
    """
    trainer, data = config["trainer"], config["data"]
    batch_size = data["batch_size"]
    batches = num_train // batch_size
    if trainer["overfit_batches"]:
        batches = limited(batches, trainer["overfit_batches"])
    elif trainer["fast_dev_run"]:
        batches = min(batches, int(trainer["fast_dev_run"]))
    else:
        batches = limited(batches, trainer["limit_train_batches"])
    if batches == 0:
        raise UserError(
            f"there is no training batch: {num_train} training images, data.batch_size={batch_size}, "
            f"trainer.limit_train_batches={trainer['limit_train_batches']}. Lower data.batch_size or add "
            "images."
        )
    accumulate = trainer["accumulate_grad_batches"]
    steps_per_epoch = math.ceil(batches / accumulate)  # Lightning steps on an epoch's last batch
    epochs = 1 if trainer["fast_dev_run"] else trainer["max_epochs"]
    unlimited = (None, -1)
    lengths = [] if epochs in unlimited else [epochs * steps_per_epoch]
    lengths += [] if trainer["max_steps"] in unlimited else [trainer["max_steps"]]
    if not lengths:
        raise UserError(
            "the run would never end, and a learning-rate schedule needs its length: set trainer.max_epochs "
            "or trainer.max_steps; trainer.max_time may end it earlier."
        )
    total = min(lengths)
    epochs = math.ceil(total / steps_per_epoch)
    warmup = _warmup(config["scheduler"], steps_per_epoch, total, dry_run=bool(trainer["fast_dev_run"]))
    return Plan(batch_size, accumulate, batches, epochs, total, warmup)


def _warmup(scheduler: Mapping[str, Any], steps_per_epoch: int, total: int, *, dry_run: bool) -> int:
    epochs: Any = scheduler.get("warmup_epochs")
    steps: Any = scheduler.get("warmup_steps")
    if epochs is None and steps is None:
        return round(total * scheduler.get("warmup_fraction", 0.0))
    asked = steps if steps is not None else round(epochs * steps_per_epoch)
    if asked > total and not dry_run:
        name, value = ("warmup_steps", steps) if steps is not None else ("warmup_epochs", epochs)
        raise UserError(
            f"scheduler.{name}={value} is {asked} optimizer steps, but the whole run has {total}. Shorten "
            "the warmup, train longer (trainer.max_epochs), or leave it to scheduler.warmup_fraction."
        )
    return min(asked, total)
