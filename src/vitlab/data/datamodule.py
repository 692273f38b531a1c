"""The data of a run: source → hold-out → in memory or streamed → augmented, normalised batches."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import lightning
import numpy as np
import torch
from torch import Tensor, nn

from vitlab.core.cpu_count import cores
from vitlab.core.errors import UserError
from vitlab.core.seeding import derive
from vitlab.data.cache import CachedImages
from vitlab.data.datasets import Source, fixed_normalization, part_sizes
from vitlab.data.decode import ImageFiles, Images, available_memory, image_shape, progress_bar
from vitlab.data.loader import Batch, EvalLoader, TrainLoader
from vitlab.data.memory import place
from vitlab.data.preprocess import Preprocess, channel_statistics
from vitlab.data.reader import Feed, Gather, Stream
from vitlab.data.split import random_order, stratified_split

Pair = tuple[Tensor, Tensor]  # uint8 (N, C, H, W), int64 (N,)

MOST_WORKERS = 16  # by default: more have not kept a GPU busier, and each keeps two batches in shared memory
PIECE = 2**24  # bytes of the pieces in which a whole data set is read


class ImageData(lightning.LightningDataModule):
    """Batches of a source for training, validation and testing.

    The images lie in one tensor on the training device (`Gather`) or are read as they are needed
    (`Stream`); the batches are the same, bit for bit. The test images are not even decoded before
    ``test_dataloader`` is asked for.

    Args:
        source: where the images come from.
        augment: (images uint8, soft targets, CPU generator, epoch) → (images, soft targets), on the
            batch's device.
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
        in_memory: True, False, or ``auto``: if they fill no more than half of what is free.
        num_workers: processes that read a stream, for each training process; None for one a core.
        device: that the trainer will train on; its free memory decides what ``auto`` means.
        processes: training processes on this machine, which share its cores and its memory.

    Raises:
        UserError: if the images shall lie in memory and do not fit.

    Attributes:
        classes, num_train, num_val, num_test: of the parts as they are used.
        placement: whether the images lie in memory, and why.
        mean, std: one value a channel, on the 0..1 scale; after ``setup``.
        preprocess: the module from pixels to the model's input; after ``setup``.
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
        in_memory: bool | str,
        num_workers: int | None,
        device: torch.device,
        processes: int,
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
        self.device = device
        sizes = part_sizes(source, val_size)
        self.num_train, self.num_val, self.num_test = sizes["train"], sizes["val"], sizes["test"]
        # Each process has a tensor of its own: on its GPU, or on the one machine that all share.
        copies = 1 if device.type == "cuda" else processes
        self.placement = place(
            in_memory,
            needed=copies * sum(source.sizes.values()) * source.channels * math.prod(source.shape),
            free=_free_memory(device),
            where=device.type,
        )
        if num_workers is None:
            each = max(1, min(MOST_WORKERS, cores() // processes))
            num_workers = each if source.on_disk else 0
        elif self.placement.in_memory and not source.on_disk:
            source.notes.append("data.num_workers has no effect: the images lie in memory, without decoding.")
        if source.on_disk and not self.placement.in_memory and normalization == "dataset":
            source.notes.append(
                "mean and deviation of streamed images are measured at every start, which reads them all "
                "once; data.normalization=half, or given values, does without."
            )
        self.num_workers = num_workers
        self._splits: dict[str, tuple[Images | Tensor, Tensor]] = {}  # of the source
        self._parts: dict[str, tuple[str, Tensor]] = {}  # "train" or "val": the split that holds it, its rows
        self._streams: dict[str, Stream] = {}
        self._generator = torch.Generator()

    def describe_placement(self) -> str:
        """Return where the images are and why, for the log."""
        images = self._splits["train"][0] if "train" in self._splits else None
        cache = f"; decoded in {images.file.parent}" if isinstance(images, CachedImages) else ""
        if self.placement.in_memory:
            return f"in memory on {self.device.type} ({self.placement.why}){cache}"
        by = f"by {self.num_workers} worker(s)" if self.num_workers else "in the training process"
        return f"streamed {by} ({self.placement.why}){cache}"

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
            self.mean, self.std = fixed or channel_statistics(self._pieces("train"))
            self.preprocess = Preprocess(size=self.input_size, mean=self.mean, std=self.std)

    def teardown(self, stage: str) -> None:
        """End the processes that read."""
        for stream in self._streams.values():
            stream.close()

    def on_exception(self, exception: BaseException) -> None:
        """End them on Ctrl-C and after a failure, too: Lightning calls no ``teardown`` then."""
        self.teardown("")

    def train_dataloader(self) -> TrainLoader:
        """Return the loader of this rank; it starts where the trainer's counters stand.

        Without a trainer it goes on where it stands itself.
        """
        if self.batches_per_epoch() == 0:
            raise UserError(
                f"data.batch_size={self.batch_size} is more than the {self.num_train} images there "
                "are to train on."
            )
        rank, world_size = self._place()
        return TrainLoader(
            self._feed("train"),
            batch_size=self.batch_size,
            seed=self.seed,
            rank=rank,
            world_size=world_size,
            position=None if self.trainer is None else self._position,
            # Overfitting means the same few batches in every epoch.
            reshuffle=not getattr(self.trainer, "overfit_batches", 0),
        )

    def val_dataloader(self) -> EvalLoader | list[Any]:
        return self._eval_loader("val") if self.num_val else []

    def test_dataloader(self) -> EvalLoader:
        return self._eval_loader("test")

    def train_images(self, number: int) -> Pair:
        """Return up to ``number`` stored training images and labels, of each class in turn."""
        split, rows = self._part("train")
        labels = self._split(split)[1].cpu()[rows].numpy()
        order = np.argsort(labels, kind="stable")
        starts = np.concatenate(([0], np.cumsum(np.bincount(labels))))
        turn = np.empty_like(labels)  # how many of its class come before an image
        turn[order] = np.arange(len(labels)) - starts[labels[order]]
        return self._read("train", torch.from_numpy(np.lexsort((labels, turn))[:number]))

    def test_images(self, places: Tensor) -> Pair:
        """Return stored test images and labels, for figures after the test: those at ``places``."""
        return self._read("test", places)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Return float32 (B, C, H', W') and targets float32 (B, K), augmented in training."""
        images = batch.images
        targets = torch.zeros(len(images), self.num_classes, device=images.device)
        targets.scatter_(1, batch.targets[:, None], 1.0)
        if self.trainer is not None and self.trainer.training:
            rank, _ = self._place()
            self._generator.manual_seed(derive(self.seed, "augment", batch.epoch, batch.index, rank))
            images, targets = self.augment(images, targets, self._generator, batch.epoch)
        if self.preprocess.mean.device != images.device:
            self.preprocess.to(images.device)
        return batch._replace(images=self.preprocess(images), targets=targets)

    # where the images are

    def _split(self, name: str) -> tuple[Images | Tensor, Tensor]:
        """Return the images and labels of a split of the source, loading it on first use."""
        if name not in self._splits:
            images, labels = self.source.load(name)
            if self.placement.in_memory and isinstance(images, ImageFiles):
                images = images.whole()
            self._splits[name] = images, torch.from_numpy(labels)
        return self._splits[name]

    def _part(self, name: str) -> tuple[str, Tensor]:
        """Return the split that a part lies in, and its rows there.

        A hold-out is rows of the training split: the images of both lie in memory once.
        """
        if name not in self._parts:
            split = name if name in self.source.sizes else "train"
            labels = self._split(split)[1].cpu()
            if split == "train" and self.num_val and "val" not in self.source.sizes:
                seed = derive(self.split_seed, "val")
                rest, held = stratified_split(labels.numpy(), self.num_val, seed, "data.val_size")
                self._parts["train"] = "train", torch.from_numpy(rest)
                self._parts["val"] = "train", torch.from_numpy(held)
            else:
                self._parts[name] = split, torch.arange(len(labels))
        return self._parts[name]

    def _feed(self, name: str) -> Feed:
        """Return a part for training or evaluation: on the device, or as a stream."""
        split, rows = self._part(name)
        images, labels = self._split(split)
        device = self.device if self.trainer is None else self.trainer.strategy.root_device
        if self.placement.in_memory:
            # Kept there, and no longer here: a data set lies in memory once.
            self._splits[split] = images, labels = _on_device(images, device), labels.to(device)
            return Gather(images, labels, rows)
        assert not isinstance(images, Tensor)
        if name not in self._streams:
            self._streams[name] = Stream(
                images, labels, rows, num_workers=self.num_workers, pin_memory=device.type == "cuda"
            )
        return self._streams[name]

    def _here(self, name: str, num_workers: int = 0) -> Feed:
        """Return a part for reading from it wherever it is."""
        split, rows = self._part(name)
        images, labels = self._split(split)
        if isinstance(images, Tensor):
            return Gather(images, labels, rows)
        return Stream(images, labels, rows, num_workers=num_workers, pin_memory=False)

    def _read(self, name: str, places: Tensor) -> Pair:
        return next(self._here(name)(places[None]))

    def _pieces(self, name: str) -> Iterator[Tensor]:
        """Yield the images of a part in pieces of a bounded size, in order."""
        decodes = isinstance(self._split(self._part(name)[0])[0], ImageFiles)
        feed = self._here(name, self.num_workers if decodes else 0)
        size = max(1, PIECE // (self.source.channels * math.prod(self.source.shape)))
        places = torch.arange(len(feed))
        whole = len(feed) // size * size
        with progress_bar("Measuring mean and deviation", len(feed)) as advance:
            for plan in (places[:whole].view(-1, size), places[whole:][None]):
                for images, _ in feed(plan):
                    yield images
                    advance(len(images))

    def _eval_loader(self, name: str) -> EvalLoader:
        rank, world_size = self._place()
        feed = self._feed(name)
        order = torch.from_numpy(random_order(len(feed), derive(self.split_seed, "order", name)))
        return EvalLoader(feed, order, batch_size=self.batch_size, rank=rank, world_size=world_size)

    def _place(self) -> tuple[int, int]:
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size

    def _position(self) -> tuple[int, int]:
        """Return (epoch, first batch) by the counters that Lightning restores from a checkpoint."""
        assert self.trainer is not None
        progress = self.trainer.fit_loop.epoch_loop.batch_progress
        return self.trainer.current_epoch, progress.current.ready


def _free_memory(device: torch.device) -> int | None:
    """Return the bytes that are free where a tensor on ``device`` would lie, if known.

    What goes to a GPU is decoded in the machine's memory first.
    """
    host = available_memory()
    if device.type != "cuda":
        return host
    free = torch.cuda.mem_get_info(device)[0]
    return free if host is None else min(free, host)


def _on_device(images: Images | Tensor, device: torch.device) -> Tensor:
    """Return uint8 (N, C, H, W) on ``device``; what lies on the disk goes there in pieces."""
    if isinstance(images, Tensor):
        return images.to(device)
    if isinstance(images, np.ndarray):
        return torch.from_numpy(images).to(device)
    out = torch.empty(images.shape, dtype=torch.uint8, device=device)
    size = max(1, PIECE // math.prod(images.shape[1:]))
    for rows in torch.arange(len(out)).split(size):
        out[rows[0] : rows[-1] + 1] = torch.from_numpy(images[rows.numpy()])
    return out
