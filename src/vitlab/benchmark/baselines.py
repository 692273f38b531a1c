"""What takes steps: vitlab's run through Lightning, a plain PyTorch loop, and input without training."""

import functools
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.environments import LightningEnvironment
from torch import Tensor, nn
from torch.optim import Optimizer

from vitlab.benchmark.timing import SETTLE, Sample
from vitlab.core.batch import Batch
from vitlab.core.console import RunConsole
from vitlab.core.run_folder import RunFolder
from vitlab.core.signals import StopSignal
from vitlab.core.summary import Summary
from vitlab.optim.schedulers import lambda_lr
from vitlab.tasks.losses import soft_cross_entropy
from vitlab.training.build import Components, optimizer_factory
from vitlab.training.callbacks import Throughput
from vitlab.training.session import Session
from vitlab.training.trackers import build_trackers
from vitlab.training.trackers.tensorboard import TensorBoardTracker
from vitlab.training.trainer import make_trainer

AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


class Repeat:
    """One batch, on the device and ready for the network, for every step of an epoch."""

    def __init__(self, batch: Batch, steps: int) -> None:
        self.batch = batch
        self.steps = steps

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Batch]:
        return itertools.repeat(self.batch, self.steps)


def train_with_lightning(
    job: Components, stop: StopSignal, steps: int, batch: Batch | None = None, settle: int = SETTLE
) -> Sample:
    """Train as ``train.py`` does, in a folder that is thrown away, and time ``steps`` steps.

    The clock is that of a run's ``images_per_second``: Lightning, callbacks, progress and TensorBoard are
    in it; the set-up, and what happens between epochs, are not. Optimizer and schedule begin anew, the
    weights go on.

    Args:
        batch: train on it alone; None for the run's own input.
        settle: steps before the clock starts.

    Raises:
        Interrupted: a signal came; between two steps.
    """
    total = settle + steps
    source: dict[str, Any] = {"datamodule": job.data}
    per_epoch = job.plan.batches_per_epoch
    if batch is not None:
        source, per_epoch = {"train_dataloaders": Repeat(batch, total)}, total
    plan = replace(job.plan, total_steps=total, batches_per_epoch=per_epoch, epochs=-(-total // per_epoch))
    with tempfile.TemporaryDirectory() as path:
        folder = RunFolder(Path(path))
        summary = Summary(folder.summary)
        summary.begin(job.config["seed"], [], {}, None)
        clock = Throughput(time.monotonic(), warmup_steps=settle)
        session = Session(folder, summary, RunConsole(folder, quiet=True), stop, clock)
        trackers = build_trackers(folder, job.config, None, session.screen.print)
        trainer, _ = make_trainer(session, replace(job, plan=plan), trackers)
        trainer.fit(job.task, **source)
        for tracker in trackers:
            if isinstance(tracker, TensorBoardTracker):
                tracker.experiment.close()
    return Sample(clock.images, clock.seconds)


def endless_input(job: Components) -> Iterator[Batch]:
    """Yield the batches that a run of ``job`` trains on, from the first epoch on, without an end."""
    data = job.data.copy()
    loader = data.train_dataloader()  # which counts the epochs itself, as it has no Trainer
    alone: Any = {"devices": 1, "plugins": [LightningEnvironment()]}  # whatever SLURM has started
    data.trainer = L.Trainer(accelerator="cpu", **alone, logger=False, enable_checkpointing=False)
    data.trainer.training = True  # or else nothing would be augmented
    while True:
        for batch in loader:
            on_device = data.transfer_batch_to_device(batch, data.device, 0)
            yield data.on_after_batch_transfer(on_device, 0)


def train_plainly(job: Components, net: nn.Module, batches: Iterator[Batch]) -> Iterator[int]:
    """Train ``net`` with what ``job`` says of loss, optimizer, schedule, clipping and precision."""
    task, options = job.task, job.config["trainer"]
    optimizer = optimizer_factory(job.config["optimizer"], job.precision, job.kind)(net)
    by_value = options["gradient_clip_algorithm"] == "value"
    clip = nn.utils.clip_grad_value_ if by_value else nn.utils.clip_grad_norm_
    largest = options["gradient_clip_val"]
    return plain_loop(
        net,
        optimizer,
        ((batch.images, batch.targets) for batch in batches),
        functools.partial(soft_cross_entropy, label_smoothing=task.label_smoothing),
        precision=job.precision,
        clip=functools.partial(clip, list(net.parameters()), largest) if largest else None,
        scheduler=lambda_lr(optimizer, task.schedule, task.total_steps),
    )


def plain_loop(
    net: nn.Module,
    optimizer: Optimizer,
    batches: Iterator[tuple[Tensor, Tensor]],
    loss: Callable[[Tensor, Tensor], Tensor],
    *,
    precision: str = "32-true",
    clip: Callable[[], object] | None = None,
    scheduler: Any = None,
) -> Iterator[int]:
    """The loop that people write without a framework: each ``next`` takes a step, and returns its images."""
    kind = next(net.parameters()).device.type
    scaler = torch.amp.GradScaler(kind, enabled=precision == "16-mixed")
    net.train()
    for images, targets in batches:
        with torch.autocast(kind, AUTOCAST.get(precision), enabled=precision in AUTOCAST):
            value = loss(net(images), targets)
        optimizer.zero_grad()
        scaler.scale(value).backward()
        if clip:
            scaler.unscale_(optimizer)
            clip()
        scaler.step(optimizer)
        scaler.update()
        if scheduler:
            scheduler.step()
        yield len(images)
