"""The data of a run: source → hold-out → tensors on the device → augmented, normalised batches."""

from collections.abc import Mapping, Sequence
from typing import Any

import lightning
import numpy as np
import torch
from torch import Tensor, nn

from vitlab.data.images import image_shape
from vitlab.data.loader import Batch, EvalLoader, TrainLoader
from vitlab.data.preprocess import Preprocess, channel_statistics
from vitlab.data.sources import Source, fixed_normalization, part_sizes
from vitlab.data.split import stratified_split
from vitlab.errors import UserError
from vitlab.seeding import derive

Pair = tuple[Tensor, Tensor]  # uint8 (N, C, H, W), int64 (N,)


class ImageData(lightning.LightningDataModule):
    """Batches of a source for training, validation and testing.

    The test images are not even decoded before ``test_dataloader`` is asked for.

    Args:
        source: where the images come from.
        augment: (images uint8, soft targets, generator) → (images, soft targets), on the batch's
            device.
        batch_size: global, split over the processes.
        val_size: count or fraction of the training images to hold out, 0 for none, None for a
            tenth. Not used if the source brings a validation set.
        split_seed: of the hold-out; apart from ``seed``, so that runs with different seeds share
            one hold-out.
        normalization: ``dataset`` (of the images trained on), ``half``, or {mean: [...], std:
            [...]}.
        input_size: what the model takes, in pixels: one integer or [height, width].
        seed: of order and augmentation.
        num_classes: K of the one-hot targets.

    Attributes, after ``setup``:
        classes, num_train, num_val, num_test: of the parts as they are used.
        mean, std: one value a channel, on the 0..1 scale.
        preprocess: the module from pixels to the model's input.
    """

    mean: list[float]
    std: list[float]
    preprocess: Preprocess

    def __init__(
        self,
        *,
        source: Source,
        augment: nn.Module,
        batch_size: int,
        val_size: int | float | None,
        split_seed: int,
        normalization: str | Mapping[str, Sequence[float]],
        input_size: int | Sequence[int],
        seed: int,
        num_classes: int,
    ) -> None:
        super().__init__()
        self.source = source
        self.augment = augment
        self.batch_size = batch_size
        self.val_size = val_size
        self.split_seed = split_seed
        self.normalization = normalization
        self.input_size = image_shape(input_size)
        self.seed = seed
        self.num_classes = num_classes
        self.classes = source.classes
        sizes = part_sizes(source, val_size)
        self.num_train, self.num_val, self.num_test = sizes["train"], sizes["val"], sizes["test"]
        self._parts: dict[str, Pair] = {}  # on the CPU; "train" and a held-out "val" arrive together
        self._generator: torch.Generator | None = None

    def batches_per_epoch(self) -> int:
        """Return the training batches of an epoch, the same on every rank."""
        return self.num_train // self.batch_size

    def setup(self, stage: str | None = None) -> None:
        """Make ready what the stage needs; calling it again does nothing new.

        Raises:
            UserError: for an unknown normalisation, or files that cannot be decoded.
        """
        if stage == "fit":
            self._part("train")
        if not hasattr(self, "preprocess"):
            fixed = fixed_normalization(self.normalization, self.source.channels)
            self.mean, self.std = fixed or channel_statistics(self._part("train")[0])
            self.preprocess = Preprocess(size=self.input_size, mean=self.mean, std=self.std)

    def train_dataloader(self) -> TrainLoader:
        """Return the loader of this rank; it starts where the trainer's counters stand."""
        if self.batches_per_epoch() == 0:
            raise UserError(
                f"data.batch_size={self.batch_size} is more than the {self.num_train} images there "
                "are to train on."
            )
        images, labels = self._on_device("train")
        rank, world_size = self._place()
        return TrainLoader(
            images,
            labels,
            batch_size=self.batch_size,
            seed=self.seed,
            rank=rank,
            world_size=world_size,
            position=self._position,
            # Overfitting means the same few batches in every epoch.
            reshuffle=not getattr(self.trainer, "overfit_batches", 0),
        )

    def val_dataloader(self) -> EvalLoader | list[Any]:
        return self._eval_loader("val") if self.num_val else []

    def test_dataloader(self) -> EvalLoader:
        return self._eval_loader("test")

    def test_images(self) -> Pair:
        """Return the stored test split, for figures after the test: images and labels."""
        return self._part("test")

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Return float32 (B, C, H', W') and targets float32 (B, K), augmented in training."""
        images = batch.images
        targets = torch.zeros(len(images), self.num_classes, device=images.device)
        targets.scatter_(1, batch.targets[:, None], 1.0)
        if self.trainer is not None and self.trainer.training:
            rank, _ = self._place()
            if self._generator is None or self._generator.device != images.device:
                self._generator = torch.Generator(images.device)
            self._generator.manual_seed(derive(self.seed, "augment", batch.epoch, batch.index, rank))
            images, targets = self.augment(images, targets, self._generator)
        if self.preprocess.mean.device != images.device:
            self.preprocess.to(images.device)
        return batch._replace(images=self.preprocess(images), targets=targets)

    def _part(self, name: str) -> Pair:
        """Return a part, decoding it on first use; train and its hold-out come together."""
        if name not in self._parts:
            if name != "train" and name in self.source.sizes:
                self._parts[name] = _tensors(*self.source.load(name))
            else:
                images, labels = self.source.load("train")
                if self.num_val and "val" not in self.source.sizes:
                    rest, held = stratified_split(
                        labels, self.num_val, derive(self.split_seed, "val"), "data.val_size"
                    )
                    self._parts["val"] = _tensors(images[held], labels[held])
                    images, labels = images[rest], labels[rest]
                self._parts["train"] = _tensors(images, labels)
        return self._parts[name]

    def _on_device(self, name: str) -> Pair:
        images, labels = self._part(name)
        device = torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device
        if images.device != device:
            if device.type == "cuda":
                free, _ = torch.cuda.mem_get_info(device)
                if images.numel() > free:
                    raise UserError(
                        f"The {name} images need {images.numel() / 2**30:.1f} GiB on {device}, and "
                        f"{free / 2**30:.1f} GiB is free. Set a smaller data.image_size."
                    )
            # Kept there, and no longer here: a data set lies in memory once.
            self._parts[name] = images.to(device), labels.to(device)
        return self._parts[name]

    def _eval_loader(self, name: str) -> EvalLoader:
        images, labels = self._on_device(name)
        rank, world_size = self._place()
        return EvalLoader(images, labels, batch_size=self.batch_size, rank=rank, world_size=world_size)

    def _place(self) -> tuple[int, int]:
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size

    def _position(self) -> tuple[int, int]:
        """Return (epoch, first batch) by the counters that Lightning restores from a checkpoint."""
        if self.trainer is None:
            return 0, 0
        progress = self.trainer.fit_loop.epoch_loop.batch_progress
        return self.trainer.current_epoch, progress.current.ready


def _tensors(images: np.ndarray, labels: np.ndarray) -> Pair:
    return torch.from_numpy(images), torch.from_numpy(labels)
