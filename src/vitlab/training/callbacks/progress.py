"""The progress line: where the run is, how well it does, how fast, and when it ends."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from vitlab.core.batch import Batch
from vitlab.core.console import RunConsole
from vitlab.training.callbacks.record import StepLoss
from vitlab.training.lightning_internals import batches_done_in_epoch


class ProgressLine(ProgressBar):
    """A Rich progress bar over the whole run, on a terminal; a log file gets a line an epoch from `Record`.

    Args:
        screen: where to write.
        step_loss: has the latest training loss on the host.
        total_batches: micro-batches of the whole run.
        batches_per_epoch: micro-batches of an epoch.
    """

    def __init__(
        self, *, screen: RunConsole, step_loss: StepLoss, total_batches: int, batches_per_epoch: int
    ) -> None:
        super().__init__()
        self.screen = screen
        self.step_loss = step_loss
        self.total_batches = total_batches
        self.batches_per_epoch = batches_per_epoch
        self.bar: Progress | None = None
        self._rate = ""
        self._enabled = True

    def enable(self) -> None:
        self._enabled = True

    def disable(self) -> None:  # Lightning calls this on every rank but the first
        self._enabled = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self._enabled:
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
        done = batches_done_in_epoch(trainer) % self.batches_per_epoch
        done += trainer.current_epoch * self.batches_per_epoch
        self.task = self.bar.add_task("epoch", total=self.total_batches, completed=done, status="")
        self.bar.start()

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        if self.bar is None:
            return
        speed = self.bar.tasks[0].speed
        self._rate = f"{speed * len(batch.images) * trainer.world_size:,.0f} images/s" if speed else ""
        self.bar.update(
            self.task,
            advance=1,
            description=f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}",
            status=" ".join(filter(None, [self._status(trainer), self._rate])),
        )

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._stop()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def _status(self, trainer: L.Trainer) -> str:
        accuracy = trainer.callback_metrics.get("val/accuracy")
        parts = [
            f"loss {self.step_loss.loss:.3f}" if self.step_loss.loss is not None else "",
            f"val/accuracy {float(accuracy):.4f}" if accuracy is not None else "",
        ]
        return "  ".join(filter(None, parts))
