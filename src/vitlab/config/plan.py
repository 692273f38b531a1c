"""The arithmetic of a run: batches, optimizer steps, durations."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vitlab.core.errors import UserError

# The batch size at which ViT recipes are usually tuned; DeiT scales its learning rate from it (Touvron et
# al. 2021, section 6: lr = 5e-4 × batch / 512).
VIT_BATCH = 512

# The units in which a scheduler's YAML can state a duration NAME, as a number or a list: NAME_epochs,
# NAME_steps, NAME_fraction of the run. The first that is given counts.
UNITS = ("steps", "epochs", "fraction")


@dataclass(frozen=True)
class Plan:
    """Counts for the whole run, over all processes."""

    batch_size: int
    accumulate: int
    batches_per_epoch: int
    epochs: int
    total_steps: int
    # Of the schedule, in optimizer steps: NAME_steps → a number, a list, or None where none was given.
    durations: Mapping[str, Any] = field(default_factory=dict)

    @property
    def warmup_steps(self) -> int:
        return self.durations.get("warmup_steps", 0)

    @property
    def effective_batch(self) -> int:
        return self.batch_size * self.accumulate

    def training_flops(self, forward: int, teacher: int = 0) -> int:
        """Floating-point operations of the run, from those of one image's forward passes.

        A backward pass costs two forward passes; a teacher's has none.
        """
        return (3 * forward + teacher) * self.total_steps * self.effective_batch

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


def make_plan(config: Mapping[str, Any], num_train: int) -> Plan:
    """Work out the run of ``config`` on ``num_train`` training images.

    Raises:
        UserError: there is not one batch, or a duration of the schedule is longer than the run.
    """
    trainer, data = config["trainer"], config["data"]
    batch_size = data["batch_size"]
    batches = num_train // batch_size
    limit = trainer["overfit_batches"] or int(trainer["fast_dev_run"]) or trainer["limit_train_batches"]
    if limit is not None:  # as in Lightning, an int counts batches and a float is a share
        batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    if batches == 0:
        raise UserError(
            f"there is no training batch: {num_train} training images, data.batch_size={batch_size}, "
            f"trainer.limit_train_batches={trainer['limit_train_batches']}. Lower data.batch_size or add "
            "images."
        )
    accumulate = trainer["accumulate_grad_batches"]
    steps_per_epoch = math.ceil(batches / accumulate)  # Lightning steps on an epoch's last batch
    epochs = 1 if trainer["fast_dev_run"] else trainer["max_epochs"]
    lengths = [length for length in (epochs * steps_per_epoch, trainer["max_steps"]) if length > 0]
    if not lengths:
        raise UserError(
            "the run would never end, and a learning-rate schedule needs its length: set trainer.max_epochs "
            "or trainer.max_steps; trainer.max_time may end it earlier."
        )
    total = min(lengths)
    epochs = math.ceil(total / steps_per_epoch)
    durations = _durations(config["scheduler"], steps_per_epoch, total, dry_run=bool(trainer["fast_dev_run"]))
    return Plan(batch_size, accumulate, batches, epochs, total, durations)


def duration_names(scheduler: Mapping[str, Any]) -> list[str]:
    """Return the NAMEs of a scheduler's durations, in the order of its YAML."""
    split = [key.rpartition("_") for key in scheduler]
    return list(dict.fromkeys(name for name, _, unit in split if name and unit in UNITS))


def _durations(
    scheduler: Mapping[str, Any], steps_per_epoch: int, total: int, *, dry_run: bool
) -> dict[str, Any]:
    """Return every duration in optimizer steps; a dry run, which is too short for most, cuts them."""
    found: dict[str, Any] = {}
    scale = {"steps": 1, "epochs": steps_per_epoch, "fraction": total}
    for name in duration_names(scheduler):
        unit = next((unit for unit in UNITS if scheduler.get(f"{name}_{unit}") is not None), None)
        if unit is None:
            found[f"{name}_steps"] = None
            continue
        given = scheduler[f"{name}_{unit}"]
        steps = [round(value * scale[unit]) for value in (given if isinstance(given, list) else [given])]
        if max(steps) > total and not dry_run:
            shorter = f", or leave it to scheduler.{name}_fraction" if f"{name}_fraction" in scheduler else ""
            raise UserError(
                f"scheduler.{name}_{unit}={given} is {max(steps)} optimizer steps, but the whole run has "
                f"{total}. Shorten it, train longer (trainer.max_epochs){shorter}."
            )
        steps = [min(value, total) for value in steps]
        found[f"{name}_steps"] = steps if isinstance(given, list) else steps[0]
    warmup, decay = found.get("warmup_steps") or 0, found.get("decay_steps") or 0
    if warmup + decay > total + 1 and not dry_run:  # 1: two fractions that were rounded up
        raise UserError(
            f"a warmup of {warmup} and a decay of {decay} optimizer steps are more than the whole run of "
            f"{total}. Shorten one of scheduler.warmup_* and scheduler.decay_*."
        )
    return found
