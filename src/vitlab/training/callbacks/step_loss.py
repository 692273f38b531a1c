"""The loss of every step: logged now and then, and watched for the first that is not finite."""

from collections.abc import Mapping
from math import isfinite
from typing import Any, NamedTuple

import lightning as L
import torch
import torch.distributed as dist
from torch import Tensor

from vitlab.core.batch import Batch
from vitlab.core.errors import Diverged
from vitlab.core.files import write_json
from vitlab.core.run_folder import RunFolder
from vitlab.core.suggest import join_or
from vitlab.tasks.protocol import task_of

MOST = 1000  # losses that wait on the device; on a GPU each takes half a kilobyte


def learning_rate(trainer: L.Trainer, step: int) -> float:
    """Return the head's rate in an optimizer step, counted from 1."""
    task = task_of(trainer)
    # With layer decay the groups differ, and the head's, whose rate is the highest, is optimizer.lr.
    peak = max(group["initial_lr"] for group in trainer.optimizers[0].param_groups)
    return peak * task.schedule(max(0, step - 1), task.total_steps)


class MicroBatch(NamedTuple):
    """A micro-batch that was trained on."""

    epoch: int  # from 0
    batch: int  # in its epoch
    step: int  # the optimizer step that it is part of, from 1


class StepLoss(L.Callback):
    """Read the training losses back now and then, without making the device wait.

    They are kept on the device. Every ``log_every_n_steps`` optimizer steps they start on their way to the
    host, and are read at the next such step, when they have long arrived. So a loss that is not finite is
    found some steps later, and all the same known by its step and its images.

    Attributes:
        loss: of the step that was logged last.
        diverged: a loss that has been read is NaN or infinite; the ranks then `check` together.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.loss: float | None = None
        self.diverged = False
        self._step = 0
        self._kept: list[tuple[MicroBatch, Tensor]] = []  # on the device
        self._pending: tuple[list[MicroBatch], Tensor, bool] | None = None  # on the way; whether to log it
        # Read, up to the first that is not finite: those of its optimizer step and of the one before it.
        self._read: list[tuple[MicroBatch, float]] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        before, self._step = self._step, trainer.global_step
        stepped = self._step > before
        self._kept.append((MicroBatch(batch.epoch, batch.index, before + 1), outputs["loss"].detach()))
        due = stepped and self._step % trainer.log_every_n_steps == 0  # type: ignore[attr-defined]
        if due or (stepped and len(self._kept) >= MOST):
            self._read_back(trainer)
            self._send(due)

    def on_validation_start(self, trainer: L.Trainer, *args: Any) -> None:
        # Before later steps are logged: W&B takes them in their order alone.
        self._read_back(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, *args: Any) -> None:
        self.check(trainer)  # before the epoch is recorded

    def on_save_checkpoint(self, trainer: L.Trainer, *args: Any) -> None:
        # What resumes from this checkpoint does not log again what came before it.
        self._read_back(trainer)
        for logger in trainer.loggers:
            logger.save()

    def check(self, trainer: L.Trainer) -> None:
        """Stop a run that has diverged, on all ranks, before its weights reach a checkpoint.

        Raises:
            Diverged: a loss, or a weight or statistic of the network, is NaN or infinite. ``nonfinite.json``
                in the run's folder says where, and names the images.
        """
        self._read_back(trainer)
        if self._kept:
            self._send(False)
            self._read_back(trainer)
        found = self._find(trainer)
        if trainer.world_size > 1:
            everyone: list[Any] = [None] * trainer.world_size
            dist.all_gather_object(everyone, found)
            places = [other for other in everyone if other]
            found = min(places, key=lambda place: (place["step"], place["batch"]), default=None)
        if found is None:
            return
        path = self.folder.path / "nonfinite.json"
        if trainer.is_global_zero:
            write_json(path, found)
        raise Diverged(self._describe(found, trainer))

    def _send(self, log: bool) -> None:
        places = [place for place, _ in self._kept]
        losses = torch.stack([loss for _, loss in self._kept])
        self._kept = []
        host = torch.empty_like(losses, device="cpu", pin_memory=losses.is_cuda)
        host.copy_(losses, non_blocking=True)
        self._pending = places, host, log

    def _read_back(self, trainer: L.Trainer) -> None:
        if self._pending is None:
            return
        places, losses, log = self._pending
        self._pending = None
        # Lightning has divided them by the micro-batches of a step.
        values = (losses * trainer.accumulate_grad_batches).tolist()
        for place, value in zip(places, values, strict=True):
            if not self.diverged:
                self._read = [(other, x) for other, x in self._read if other.step >= place.step - 1]
                self._read.append((place, value))
                self.diverged = not isfinite(value)
        if not log:
            return
        self.loss, step = values[-1], places[-1].step
        # At the step that was taken last, counted from 0 as Lightning counts: a run that resumes at step n
        # takes back what stands at n and later.
        for logger in trainer.loggers:
            rate = learning_rate(trainer, step)
            logger.log_metrics({"train/loss_step": self.loss, "learning_rate": rate}, step - 1)

    def _find(self, trainer: L.Trainer) -> dict[str, Any] | None:
        """Return what nonfinite.json will say; None where all that this rank has is finite."""
        what, last = "", self._read[-1][0] if self._read else MicroBatch(trainer.current_epoch, 0, self._step)
        state = [v for v in task_of(trainer).net.state_dict().values() if v.is_floating_point()]
        validation = trainer.callback_metrics.get("val/loss")
        if self.diverged:
            what = "loss"
        elif not torch.stack([value.isfinite().all() for value in state]).all():
            what = "weights"
        elif validation is not None and not validation.isfinite():
            what = "val/loss"
        if not what:
            return None
        locate = trainer.datamodule.locate  # type: ignore[attr-defined]
        return {
            "not_finite": what,
            "step": last.step,
            "epoch": last.epoch + 1,
            "batch": last.batch,
            "learning_rate": learning_rate(trainer, last.step),
            "rank": trainer.global_rank,
            # As text where they are NaN or infinite, which JSON has not.
            "batches": [
                {"step": place.step, "batch": place.batch, "loss": loss if isfinite(loss) else str(loss)}
                | locate(place.epoch, place.batch)
                for place, loss in self._read
            ],
        }

    def _describe(self, found: Mapping[str, Any], trainer: L.Trainer) -> str:
        what = {
            "loss": f"the loss of optimizer step {found['step']:,} is {found['batches'][-1]['loss']}",
            "weights": f"after optimizer step {found['step']:,} weights are no longer finite",
            "val/loss": f"after optimizer step {found['step']:,} the validation loss is not finite",
        }
        config = task_of(trainer).meta["config"]
        advice = [f"lower optimizer.lr ({config['optimizer']['lr']:g})"]
        advice += ["lengthen the warmup (scheduler.warmup_epochs)"] * ("warmup_epochs" in config["scheduler"])
        if config["trainer"]["gradient_clip_val"] is None:
            advice.append("set trainer.gradient_clip_val=1.0")
        if task_of(trainer).meta["precision"] != "32-true":
            advice.append("try trainer.precision=32")
        rank = f", rank {found['rank']}" if trainer.world_size > 1 else ""
        anew = f"start anew, or from the weights before (model.checkpoint_path={self.folder})"
        return (
            f"training diverged: {what[found['not_finite']]} (epoch {found['epoch']}, learning rate "
            f"{found['learning_rate']:.3g}{rank}). The images of its batch are listed in "
            f"{self.folder}/nonfinite.json. Resuming would end the same way: "
            f"{anew if self.folder.last.exists() else 'start anew'}, and {join_or(advice)}."
        )
