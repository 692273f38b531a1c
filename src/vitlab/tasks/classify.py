"""Image classification: the LightningModule that trains any `vitlab.models` network."""

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from vitlab.core.batch import Batch
from vitlab.core.seeding import derive_seed
from vitlab.models.sharding import is_sharded, shard
from vitlab.optim import freezing
from vitlab.optim.schedulers import lambda_lr
from vitlab.tasks.evaluate import Evaluate
from vitlab.tasks.losses import soft_cross_entropy


def num_correct(predictions: Tensor, truth: Tensor) -> Tensor:
    """Count the rows of two (B, K) whose largest value stands at the same place."""
    return (predictions.argmax(1) == truth.argmax(1)).sum()


class Classify(Evaluate):
    """Train ``net`` with soft-target cross entropy.

    Batches are `Batch` after augmentation: images (B, C, H, W) float, targets (B, K)
    that sum to one, their place in the run, and how many rows are real.

    Args:
        net: images (B, C, H, W) → logits (B, K).
        optimizer: network → optimizer of its trainable parameters, in groups. Called on ``net`` when
            ``freeze`` has settled what there is to train, and again where ``net`` has been sharded.
        schedule: (optimizer step, total steps) → multiplier of the learning rate.
        total_steps: optimizer steps of the whole run.
        num_classes: K.
        label_smoothing: share of the target given to the uniform distribution, in training only.
        freeze: which layers stay as they are: ``none``, ``head_only`` or ``first_N``, see
            `vitlab.optim.freezing`.
        seed: of the run; dropout is a function of (seed, epoch, micro-batch index, rank).
        meta: plain values that every checkpoint carries: configuration, classes, normalisation.
    """

    # What an epoch reports of its training images as their mean: the names of train/… in metrics.csv.
    shown: tuple[str, ...] = ("loss", "accuracy")

    def __init__(
        self,
        *,
        net: nn.Module,
        optimizer: Callable[[nn.Module], Optimizer],
        schedule: Callable[[int, int], float],
        total_steps: int,
        num_classes: int,
        label_smoothing: float,
        freeze: str,
        seed: int,
        meta: dict[str, Any],
    ) -> None:
        super().__init__(net, num_classes)
        self.schedule = schedule
        self.total_steps = total_steps
        self.label_smoothing = label_smoothing
        self.seed = seed
        self.meta = meta
        # Sums over the epoch so far: what is `shown`, and images. They stay on the device, and travel in the
        # checkpoint so that an epoch that was interrupted reports what it would have reported.
        self.sums: Tensor | None = None
        self.frozen = freezing.freeze(net, freeze)
        freezing.freeze_eval(net, self.frozen)
        # Parameters keep their identity when they move to another device or type, so that an optimizer built
        # here, where a wrong option is found before a run begins, still holds them.
        self.built_optimizer = optimizer(net)
        self._build_optimizer = optimizer

    def configure_model(self) -> None:
        # trainer.strategy=fsdp; Lightning calls it before a test again.
        if self.device_mesh is not None and not is_sharded(self.net):
            shard(self.net, self.device_mesh["data_parallel"])
            self.built_optimizer = self._build_optimizer(self.net)

    # training

    def train(self, mode: bool = True) -> Self:
        """Switch between training and evaluation; frozen layers stay in evaluation."""
        super().train(mode)
        freezing.freeze_eval(self.net, self.frozen)
        return self

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # Dropout and drop path draw from the global generator, and Lightning restores no generator: give
        # every micro-batch its own stream, so a resumed run draws what the uninterrupted one drew.
        seed = derive_seed(self.seed, "dropout", batch.epoch, batch.index, self.global_rank)
        # On a machine without a GPU `torch.manual_seed` formats stack traces for it: 0.1 ms a step.
        (torch.default_generator if self.device.type == "cpu" else torch).manual_seed(seed)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self._batch_idx = batch_idx
        loss, others = self.objective(batch)
        with torch.no_grad():
            size = len(batch.images)
            step = [loss.detach() * size, *others, torch.ones_like(loss) * size]
            sums = torch.stack([value.float() for value in step])
            self.sums = sums if self.sums is None else self.sums + sums
        return loss

    def objective(self, batch: Batch) -> tuple[Tensor, list[Tensor]]:
        """Return the loss, and of what is `shown` the sums over the batch that follow the loss's."""
        logits = self.net(self._cast(batch.images))
        loss = soft_cross_entropy(logits, batch.targets, self.label_smoothing)
        return loss, [num_correct(logits, batch.targets)]

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        # Lightning divides every loss by accumulate_grad_batches, also where the last step of an epoch has
        # fewer micro-batches: its gradient, too, is to be the mean over the images that it has seen.
        times = self.trainer.accumulate_grad_batches
        batches = int(self.trainer.num_training_batches)
        last = batches % times  # micro-batches of that step; 0 where it is a full one
        if last and self._batch_idx >= batches - last:
            loss = loss * (times / last)
        super().backward(loss, *args, **kwargs)

    def on_train_epoch_end(self) -> None:
        assert self.sums is not None
        *sums, images = self._reduced_sums().tolist()
        self.sums = None
        means = {f"train/{name}": value / images for name, value in zip(self.shown, sums, strict=True)}
        self.log_dict(means, logger=False)  # the loggers get them from `Record`

    def _reduced_sums(self) -> Tensor:
        assert self.sums is not None
        return self.trainer.strategy.reduce(self.sums.clone(), reduce_op="sum")

    # optimization

    def configure_optimizers(self) -> Any:
        scheduler = lambda_lr(self.built_optimizer, self.schedule, self.total_steps)
        return {
            "optimizer": self.built_optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        # Lightning 2.6 refuses to clip for a fused optimizer under bf16-mixed, where nothing has to be
        # unscaled (Lightning#21435). Under 16-mixed the optimizer is not fused (`training.build`), so the
        # gradients are unscaled by the time this hook runs.
        if not gradient_clip_val:
            return
        if gradient_clip_algorithm == "value":
            nn.utils.clip_grad_value_(self.net.parameters(), gradient_clip_val)
        else:
            nn.utils.clip_grad_norm_(self.net.parameters(), gradient_clip_val)

    # checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["vitlab"] = self.meta
        checkpoint["epoch_sums"] = None if self.sums is None else self._reduced_sums().cpu()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        sums = checkpoint["epoch_sums"]
        # The sums of all ranks are one rank's to carry on.
        if sums is not None and self.global_rank == 0:
            self.sums = sums.to(self.device)
