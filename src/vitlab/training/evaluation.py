"""The test of a run once more, from a checkpoint alone: same batches, precision, compilation and metrics."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.environments import LightningEnvironment
from torch import Tensor, nn

from vitlab.core import hardware
from vitlab.core.batch import Batch
from vitlab.core.checkpoint import CheckpointMeta
from vitlab.data.datamodule import ImageData
from vitlab.data.datasets import Dataset
from vitlab.data.loader import EvalLoader
from vitlab.tasks.evaluate import Evaluate
from vitlab.training.build import build_data
from vitlab.training.faults import plain_errors
from vitlab.training.run import quieten

# (uint8 images (B, C, H, W) on their device, int64 rows (B,) of theirs in the part) → the same, changed.
Change = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Evaluation:
    """What a network says of one part of a data set.

    Attributes:
        logits: (N, K) float32, on the CPU.
        labels: int64 (N,).
        rows: int64 (N,), which images of the part these are, in their order.
        metrics: ``loss``, ``accuracy`` and, beyond five classes, ``accuracy_top5``: of the test part what
            summary.json has as ``test/…``.
        seconds: that the pass took, without its first batch, in which a network is compiled, scaled to all.
    """

    logits: Tensor
    labels: Tensor
    rows: Tensor
    metrics: dict[str, float]
    seconds: float


def device_kind(meta: CheckpointMeta) -> str:
    """Return the type of device that a run's network is evaluated on: a run on GPUs goes on without one."""
    asked = meta["config"]["trainer"]["accelerator"]
    return hardware.resolve_device_type("cpu" if asked == "cpu" else "auto")


def run_precision(meta: CheckpointMeta, kind: str) -> str:
    """Return the precision that a run tests in, or the nearest one that a device of this kind has."""
    asked = meta.get("precision") or meta["config"]["trainer"]["precision"]
    return "32-true" if asked == "16-mixed" and kind == "cpu" else hardware.resolve_precision(asked, kind)


def restore_data(meta: CheckpointMeta, dataset: Dataset) -> ImageData:
    """Return the data of a run, normalised as its checkpoint says; nothing is read before it is asked for.

    Args:
        dataset: of the run, or another one with the same classes and channels.

    Raises:
        UserError: the images must be kept in memory and do not fit.
    """
    normalization = {"mean": meta["mean"], "std": meta["std"]}
    config = meta["config"] | {"data": meta["config"]["data"] | {"normalization": normalization}}
    data = build_data(config, dataset, device_kind(meta), processes=1)
    data.setup()
    return data


def evaluate(
    net: nn.Module,
    meta: CheckpointMeta,
    data: ImageData,
    part: str = "test",
    *,
    change: Change | None = None,
    flip: bool = False,
) -> Evaluation:
    """Return what a trained network says of a part of ``data``, computed as its run computes a test.

    Of the same images on the same machine the metrics are those of the run's own test, to the last bit; a
    test over several processes sums its loss in another order.

    Args:
        net: of a checkpoint. It is the evaluation's from now on: moved, and compiled in place if its run was.
        meta: of the same checkpoint.
        part: ``test``, ``val`` or ``train``, of which no image is augmented.
        change: what is done to the pixels first.
        flip: average the probabilities of every image and of its mirror image.

    Raises:
        UserError: the device runs out of memory, or Lightning refuses what the run was configured with.
    """
    options, kind = meta["config"]["trainer"], device_kind(meta)
    if meta.get("compiled") and hardware.has_compiler(kind) and net._compiled_call_impl is None:
        net.compile(dynamic=False)
    own = ("inference_mode", "deterministic", "benchmark", *(["limit_test_batches"] * (part == "test")))
    task, collected = (EvaluateFlipped if flip else Evaluate)(net, len(meta["classes"])), Collect()
    quieten()
    with plain_errors(), hardware.use_matmul_precision(meta["config"]["matmul_precision"]):
        trainer = L.Trainer(
            accelerator=kind,
            devices=1,
            precision=run_precision(meta, kind),  # type: ignore[arg-type]
            callbacks=[collected],
            plugins=[LightningEnvironment()],  # a single process, also of a SLURM job with several
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            **{key: options[key] for key in own},
        )
        source = Part(data, part, change)
        (metrics,) = trainer.test(task, datamodule=source, verbose=False)
    logits = torch.cat(collected.logits)
    rows, places = source.loader.order[: len(logits)].sort()
    return Evaluation(
        logits=logits[places],
        labels=torch.cat(collected.labels)[places],
        rows=rows,
        metrics={name.removeprefix("test/"): value for name, value in metrics.items()},
        seconds=collected.seconds(),
    )


class EvaluateFlipped(Evaluate):
    """Evaluation whose logits are the logarithm of the mean probability of an image and its mirror image."""

    def forward(self, images: Tensor) -> Tensor:
        both = torch.stack([self.net(images), self.net(images.flip(-1))])  # (2, B, K)
        return both.float().log_softmax(-1).logsumexp(0) - math.log(2)  # finite where p is 0


class Part(L.LightningDataModule):
    """A part of a run's data as Lightning's test split, its pixels changed."""

    loader: EvalLoader

    def __init__(self, data: ImageData, part: str, change: Change | None) -> None:
        super().__init__()
        self.data = data.copy()
        self.part = part
        self.change = change

    def test_dataloader(self) -> EvalLoader:
        self.data.trainer = self.trainer
        self.loader = self.data.eval_dataloader(self.part)
        return self.loader

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        if self.change:
            size = len(batch.images)
            rows = self.loader.order[batch.index * size :][:size]
            padded = torch.cat([rows, self.loader.order[:1].expand(size - len(rows))])
            batch = batch._replace(images=self.change(batch.images, padded))
        return self.data.on_after_batch_transfer(batch, dataloader_idx)

    def teardown(self, stage: str) -> None:
        self.data.teardown(stage)

    def on_exception(self, exception: BaseException) -> None:
        self.data.on_exception(exception)


class Collect(L.Callback):
    """Keep the logits and labels of a test, and take its time."""

    def __init__(self) -> None:
        self.logits: list[Tensor] = []  # (valid, K) each
        self.labels: list[Tensor] = []
        self.ends = [time.perf_counter()]

    def on_test_batch_end(
        self, trainer: L.Trainer, module: Any, outputs: Any, batch: Batch, batch_idx: int, *_: Any
    ) -> None:
        self.logits.append(outputs.cpu())
        self.labels.append(batch.targets[: batch.valid].argmax(1).cpu())
        self.ends.append(time.perf_counter())

    def seconds(self) -> float:
        """Return how long all batches took, as if the first had taken as long as the others."""
        after_first = len(self.ends) - 2
        if after_first < 1:
            return self.ends[-1] - self.ends[0]
        return (self.ends[-1] - self.ends[1]) * (after_first + 1) / after_first
