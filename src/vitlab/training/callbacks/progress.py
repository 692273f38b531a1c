"""The progress line: where the run is, how well it does, how fast, and when it ends."""

import contextlib
from dataclasses import dataclass
from typing import Any

import lightning as L
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from vitlab.config.plan import Plan
from vitlab.core.batch import Batch
from vitlab.core.console import RunConsole
from vitlab.training.callbacks.step_loss import StepLoss
from vitlab.training.lightning_internals import batches_done_in_epoch


@dataclass(eq=False)
class ProgressLine(L.Callback):
    """A Rich progress bar over the whole run, on a terminal; log files get a line an epoch from `Record`."""

    screen: RunConsole
    step_loss: StepLoss
    plan: Plan
    bar: Progress | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[status]}"),
            # Narrow terminals shorten the bar and not the time.
            TextColumn("left", table_column=Column(min_width=4, no_wrap=True)),
            TimeRemainingColumn(compact=True, table_column=Column(min_width=5, no_wrap=True)),
            console=self.screen.console,
            refresh_per_second=4,
            expand=True,
            transient=True,
            disable=not self.screen.console.is_terminal,
        )
        each = self.plan.batches_per_epoch
        done = batches_done_in_epoch(trainer) % each + trainer.current_epoch * each
        self.bar.add_task("epoch", total=self.plan.epochs * each, completed=done, status="")
        self.bar.start()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        if self.bar is None:
            return
        loss, accuracy = self.step_loss.loss, trainer.callback_metrics.get("val/accuracy")
        (task,) = self.bar.tasks
        status = []
        if loss is not None:
            status.append(f"loss {loss:.3f}")
        if accuracy is not None:
            status.append(f"val/accuracy {float(accuracy):.4f}")
        rate = (task.speed or 0) * len(batch.images) * trainer.world_size
        self.bar.update(
            task.id,
            advance=1,
            description=f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}",
            status="  ".join(status) + (f" {rate:,.0f} images/s" if rate else ""),
        )

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        if self.bar is not None:
            with contextlib.suppress(OSError):  # its terminal was closed
                self.bar.stop()
            self.bar = None

    on_exception = on_train_end
