"""Images per second of training, as a user gets them."""

import time
from typing import Any

import lightning as L
import torch

from vitlab.core.batch import Batch

# The first steps compile, allocate and fill caches.
WARMUP_STEPS = 10


class Throughput(L.Callback):
    """Measure the training rate over all processes: loading, augmentation and step.

    Without validation, checkpoints, compilation and the first optimizer steps of each session.

    Args:
        started: the `time.monotonic` at which this session began, for ``wall_seconds``.
        warmup_steps: optimizer steps of the session before the clock starts.

    Attributes:
        images, seconds: counted so far.
    """

    def __init__(self, started: float, warmup_steps: int = WARMUP_STEPS) -> None:
        self._started = started
        self._warmup_steps = warmup_steps
        self._wall_before = 0.0
        self.images = 0
        self.seconds = 0.0
        self._first_step = 0
        self._warm = False
        self._mark: float | None = None

    @property
    def images_per_second(self) -> float | None:
        """The rate so far; None where the run was too short to measure."""
        return self.images / self.seconds if self.images and self.seconds else None

    @property
    def wall_seconds(self) -> float:
        """Everything from the start of the process on, over all sessions that kept work."""
        return self._wall_before + time.monotonic() - self._started

    def state_dict(self) -> dict[str, Any]:
        return {"images": self.images, "seconds": self.seconds, "wall": self.wall_seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.images, self.seconds = state_dict["images"], state_dict["seconds"]
        self._wall_before = state_dict["wall"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._first_step, self._warm, self._mark = trainer.global_step, False, None

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        if self._warm:
            self.images += len(batch.images) * trainer.world_size
        elif trainer.global_step - self._first_step >= self._warmup_steps:
            self._warm = True
            self._start()

    def _start(self, *args: Any, **kwargs: Any) -> None:
        if self._warm and self._mark is None:
            wait_for_device()
            self._mark = time.perf_counter()

    def _pause(self, *args: Any, **kwargs: Any) -> None:
        if self._mark is not None:
            wait_for_device()
            self.seconds += time.perf_counter() - self._mark
            self._mark = None

    on_train_epoch_start = on_train_batch_start = on_validation_end = _start
    on_train_epoch_end = on_save_checkpoint = on_validation_start = _pause


def wait_for_device() -> None:
    """Return when a GPU has done all that it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
