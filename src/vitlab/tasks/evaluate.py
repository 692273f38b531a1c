"""What a network is worth on labelled images: the evaluation that every task shares."""

from functools import partial
from typing import Any

import lightning as L
from torch import Tensor, nn
from torchmetrics import ConfusionMatrix, MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from vitlab.core.batch import Batch
from vitlab.tasks.losses import soft_cross_entropy


class Evaluate(L.LightningModule):
    """Measure ``net`` on the batches of a `Batch` loader: loss, accuracy, and top-5 beyond five classes.

    Args:
        net: images (B, C, H, W) → logits (B, K).
        num_classes: K.
    """

    def __init__(self, net: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.net = net
        accuracy = partial(MulticlassAccuracy, num_classes, average="micro", validate_args=False)
        metrics: dict[str, Any] = {"loss": MeanMetric(nan_strategy="disable"), "accuracy": accuracy()}
        if num_classes > 5:  # with five classes or fewer, top-5 is always right
            metrics["accuracy_top5"] = accuracy(top_k=5)
        self.val_metrics = MetricCollection(metrics, prefix="val/", compute_groups=False)
        self.test_metrics = self.val_metrics.clone(prefix="test/")
        # Rows are the truth, columns the prediction; its diagonal over its row sums is accuracy per class.
        self.confusion = ConfusionMatrix("multiclass", num_classes=num_classes, validate_args=False)
        self.confusion_counts: Tensor  # (K, K), after a test

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)

    def _cast(self, images: Tensor) -> Tensor:
        # trainer.precision=bf16-true or 64-true changes the weights' type; otherwise both are float32.
        return images.to(next(self.net.parameters()).dtype)

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self._evaluate(batch, self.val_metrics)  # for callbacks

    def on_validation_epoch_end(self) -> None:
        self._report(self.val_metrics)

    def test_step(self, batch: Batch, batch_idx: int) -> Tensor:
        logits = self._evaluate(batch, self.test_metrics)
        if batch.valid:
            self.confusion.update(logits, batch.targets[: batch.valid].argmax(1))
        return logits  # (valid, K), for callbacks

    def on_test_epoch_end(self) -> None:
        self._report(self.test_metrics)
        self.confusion_counts = self.confusion.compute()  # here, where every rank takes part
        self.confusion.reset()

    def _evaluate(self, batch: Batch, metrics: MetricCollection) -> Tensor:
        # The rows after `valid` fill the batch up to its static shape and count for nothing.
        logits = self(self._cast(batch.images))[: batch.valid].float()
        targets = batch.targets[: batch.valid]
        if batch.valid:
            labels = targets.argmax(1)
            for name, metric in metrics.items(keep_base=True):
                if name == "loss":
                    # One value an image: with nan_strategy="disable", torchmetrics 1.9 ignores weights.
                    metric.update(soft_cross_entropy(logits, targets, reduction="none"))
                else:
                    metric.update(logits, labels)
        return logits

    def _report(self, metrics: MetricCollection) -> None:
        self.log_dict({name: value.float() for name, value in metrics.compute().items()})
        metrics.reset()
