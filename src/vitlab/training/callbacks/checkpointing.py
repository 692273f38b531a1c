"""Checkpoints from which a run resumes bit for bit, and the clean stop."""

import contextlib
import os
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from vitlab.core.batch import Batch
from vitlab.core.checkpoint import copy_checkpoint, publish, publish_last, read_checkpoint
from vitlab.core.claim import end_if_lost
from vitlab.core.disk import describe_room, disk_problem
from vitlab.core.errors import UserError
from vitlab.core.files import sync
from vitlab.core.run_folder import RunFolder
from vitlab.core.signals import Interrupted, StopSignal
from vitlab.training.callbacks.step_loss import StepLoss
from vitlab.training.lightning_internals import batches_done, is_last_batch, skip_sigterm_broadcast

MONITOR = "val/accuracy"


def collect_metrics(trainer: L.Trainer, prefix: str) -> dict[str, float]:
    """Return the metrics whose names begin with ``prefix``, as they were logged last."""
    return {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith(prefix)}


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write a checkpoint to disk for certain, and read only plain types.

    Lightning's own writes to the system's temporary folder and moves the file: not atomic across file
    systems, and not synced.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        with open(path, "wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return read_checkpoint(Path(path))


class Checkpointing(Checkpoint):
    """Save ``last.ckpt`` and ``best.ckpt``, and stop when asked to.

    Lightning runs subclasses of `Checkpoint` after every other callback, when the epoch's metrics are
    known. A checkpoint is written at two kinds of place only, between two optimizer steps and at the end
    of an epoch, because Lightning's loops restart exactly from these. (``best.ckpt`` is also written after a
    validation within an epoch; it then says that it is not ``restartable``.)

    Args:
        every_minutes: also save within an epoch when the last save is this old.
        total_steps: stop after this many optimizer steps. Lightning's own ``max_steps`` restarts a finished
            epoch when it resumes, so it is not used.
        step_loss: knows whether the run has diverged, in which case nothing is saved.
        enabled: False keeps nothing (``trainer.enable_checkpointing=false``) but still stops cleanly.
    """

    def __init__(
        self,
        *,
        folder: RunFolder,
        stop: StopSignal,
        every_minutes: float,
        total_steps: int,
        step_loss: StepLoss,
        enabled: bool,
    ) -> None:
        self.folder = folder
        self.stop = stop
        self.every_seconds = every_minutes * 60
        self.total_steps = total_steps
        self.step_loss = step_loss
        self.enabled = enabled
        self.best_metrics: dict[str, float] | None = None  # of validation, at the best accuracy so far
        self._improved = False
        self._restartable = True  # the checkpoint that is being written: see the class
        self._saved_at = time.monotonic()
        self._group: Any = None

    def state_dict(self) -> dict[str, Any]:
        return {"best_metrics": self.best_metrics, "restartable": self._restartable}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_metrics = state_dict["best_metrics"]

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.stop.install()
        if trainer.world_size > 1:
            # A group on the CPU: the ranks agree on stopping without waiting for their GPUs.
            self._group = dist.new_group(backend="gloo")
            skip_sigterm_broadcast(trainer)

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.stop.install()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Again: since `on_fit_start` Lightning has put its own handler for SIGTERM around ours, which would
        # end the run after this micro-batch, with status 0 and no checkpoint.
        self.stop.install()
        self._saved_at = time.monotonic()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        done = batch_idx + 1
        if done % trainer.accumulate_grad_batches or done >= trainer.num_training_batches:
            return  # between two micro-batches of a step, or at the end of an epoch, which saves
        if trainer.global_step >= self.total_steps:
            trainer.should_stop = True  # validates, ends the epoch, and so saves
            return
        # After a batch that is followed by validation the loops do not restart where they were: a
        # checkpoint there would skip it. The next step, or the end of the epoch, is near.
        if self._validation_follows(trainer, done):
            return
        stop, due, diverged = self._agree(trainer)
        if diverged:
            self.step_loss.check(trainer)
        if stop or due:
            self._save(trainer, [self.folder.last])
        if stop:
            raise Interrupted(stop)

    def _validation_follows(self, trainer: L.Trainer, done: int) -> bool:
        every = trainer.val_check_batch
        if not trainer.enable_validation or every in (None, float("inf")):
            return False
        counted = batches_done(trainer) if trainer.check_val_every_n_epoch is None else done
        return counted % every == 0

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        metrics = collect_metrics(trainer, "val/")
        # A sanity check (trainer.num_sanity_val_steps) measures an untrained network on a few batches.
        if trainer.sanity_checking or trainer.state.fn != "fit" or MONITOR not in metrics:
            return
        if self.best_metrics is None or metrics[MONITOR] > self.best_metrics[MONITOR]:
            self.best_metrics = metrics
            self._improved = True
            if not is_last_batch(trainer) and not trainer.should_stop:
                self._save(trainer, [self.folder.best])

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Best first: a run killed between the two repeats the epoch and writes both again.
        self._save(trainer, [self.folder.best] * self._improved + [self.folder.last])
        stop, *_ = self._agree(trainer)
        if stop:
            raise Interrupted(stop)

    def on_test_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if self.stop.received:
            raise Interrupted(self.stop.received)

    def _agree(self, trainer: L.Trainer) -> list[int]:
        """Return, the same on every rank, the signal to stop for (0: none), and two that are 0 or 1.

        Whether a save is due, and whether a rank has read a loss that is not finite.
        """
        due = trainer.is_global_zero and time.monotonic() - self._saved_at >= self.every_seconds
        flags = torch.tensor([self.stop.received or 0, int(due), int(self.step_loss.diverged)])
        if self._group is not None:
            dist.all_reduce(flags, dist.ReduceOp.MAX, group=self._group)
        return flags.tolist()

    def _save(self, trainer: L.Trainer, targets: list[Path]) -> None:
        self.step_loss.check(trainer)
        self._improved = self._improved and self.folder.best not in targets
        self._saved_at = time.monotonic()
        if not self.enabled:
            return
        self.folder.checkpoints.mkdir(exist_ok=True)
        sync(self.folder.path)
        self._restartable = self.folder.last in targets
        temporary = self.folder.checkpoints / ".new.ckpt.tmp"
        try:
            trainer.save_checkpoint(temporary)
            end_if_lost(self.folder.path)
            if trainer.is_global_zero:
                for target in targets[:-1]:
                    copy_checkpoint(temporary, target)
                (publish_last if self._restartable else publish)(temporary, targets[-1])
        except (OSError, RuntimeError) as error:
            if problem := disk_problem(error):
                raise UserError(self._describe(problem, temporary, trainer)) from error
            raise
        trainer.strategy.barrier("checkpoint")

    def _describe(self, problem: str, temporary: Path, trainer: L.Trainer) -> str:
        """Say what could not be written, and take what is left of it away."""
        states = [value for optimizer in trainer.optimizers for value in optimizer.state.values()]
        tensors = [
            *trainer.lightning_module.state_dict().values(),
            *(value for state in states for value in state.values() if isinstance(value, torch.Tensor)),
        ]
        needed = sum(tensor.nbytes for tensor in tensors) / 1e6
        with contextlib.suppress(OSError):  # a disk that is gone
            temporary.unlink(missing_ok=True)
        kept = "those before it are intact" if os.path.exists(self.folder.last) else "there is none before it"
        return (
            f"{problem}. The checkpoint of step {trainer.global_step:,} needs {needed:,.2f} MB or more, and "
            f"{describe_room(self.folder.checkpoints)}; {kept}."
        )
