"""metrics.csv and the trackers: what happened, epoch by epoch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint

from vitlab.core.console import RunConsole
from vitlab.core.files import write_atomic
from vitlab.core.metrics_csv import read_metrics, to_csv
from vitlab.core.run_folder import RunFolder
from vitlab.core.summary import Summary, Turned
from vitlab.training.callbacks.checkpointing import Checkpointing, collect_metrics
from vitlab.training.callbacks.step_loss import learning_rate
from vitlab.training.callbacks.throughput import Throughput


@dataclass(eq=False)
class Record(Checkpoint):
    """Write one row of ``metrics.csv`` an epoch, and say it in one line.

    A subclass of `Checkpoint` only because Lightning runs these last, when the module has logged its
    epoch. The file is rewritten whole and atomically; rows of epochs that a resumed run repeats are dropped.
    """

    folder: RunFolder
    summary: Summary
    checkpointing: Checkpointing
    throughput: Throughput
    screen: RunConsole
    rows: list[dict[str, Any]] = field(default_factory=list)
    validation: dict[str, float] = field(default_factory=dict)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.rows = [row for row in read_metrics(self.folder) if row["epoch"] <= trainer.current_epoch]

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            self.validation = collect_metrics(trainer, "val/")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        row = {"epoch": epoch, "step": trainer.global_step} | collect_metrics(trainer, "train/")
        # Not every epoch is validated: the metrics of an earlier one must not get into this row.
        row |= self.validation
        row["learning_rate"] = learning_rate(trainer, trainer.global_step)
        self.validation = {}
        self.rows = [*(r for r in self.rows if r["epoch"] < epoch), row]
        # Here and not by Lightning, which would log it when the checkpoint of this epoch is there already.
        for logger in trainer.loggers:
            values = collect_metrics(trainer, "train/") | {"epoch": trainer.current_epoch}
            logger.log_metrics(values, trainer.global_step - 1)
        if trainer.is_global_zero:
            write_atomic(self.folder.metrics, to_csv(self.rows).encode())
            self.summary.update(
                turned=find_turns(self.rows),
                metrics=self.checkpointing.best_metrics or {},
                train={"epochs": epoch, "optimizer_steps": trainer.global_step},
            )
        parts = [f"epoch {epoch}/{trainer.max_epochs}", f"train/loss {row['train/loss']:.3f}"]
        parts += [f"{key} {row[key]:.4f}" for key in ("train/accuracy", "val/accuracy") if key in row]
        if rate := self.throughput.images_per_second:
            parts.append(f"{rate:,.0f} images/s")
        self.screen.print("  ".join(parts))


def find_turns(rows: Sequence[Mapping[str, Any]]) -> Turned:
    """Return the epochs at which validation was best, by loss and by accuracy; of equals the first."""
    validated = [row for row in rows if "val/loss" in row]
    if not validated:
        return {"loss_epoch": None, "accuracy_epoch": None}
    return {
        "loss_epoch": min(validated, key=lambda row: row["val/loss"])["epoch"],
        "accuracy_epoch": max(validated, key=lambda row: row["val/accuracy"])["epoch"],
    }
