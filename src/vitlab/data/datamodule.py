"""The data of a run: dataset → hold-out → in memory or streamed → augmented, normalised batches."""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import lightning
import numpy as np
import torch
from torch import Tensor, nn

from vitlab.core.batch import Batch
from vitlab.core.cpu_count import count_cores
from vitlab.core.seeding import derive_seed
from vitlab.data.cache import CachedImages
from vitlab.data.datasets import Dataset, describe
from vitlab.data.decode import ImageFiles, Images, LazyImages, progress_bar
from vitlab.data.loader import EvalLoader, TrainLoader
from vitlab.data.memory import available_memory, decide_in_memory
from vitlab.data.preprocess import Preprocess, channel_statistics
from vitlab.data.reader import MemoryReader, Reader, StreamReader
from vitlab.data.split import random_order, stratified_split

Pair = tuple[Tensor, Tensor]  # uint8 (N, C, H, W), int64 (N,)

MAX_WORKERS = 16  # by default: more have not kept a GPU busier, and each keeps two batches in shared memory
CHUNK_BYTES = 2**24  # a whole data set is read in chunks of this size


class ImageData(lightning.LightningDataModule):
    """Batches of a dataset for training, validation and testing.

    The images are kept in one tensor on the training device (`MemoryReader`) or read as they are
    needed (`StreamReader`); the batches are the same, bit for bit. The test images are not even
    decoded before ``test_dataloader`` is called.

    Args:
        dataset: where the images come from.
        augment: (images uint8, soft targets, CPU generator, epoch) → (images, soft targets), on the
            batch's device.
        batch_size: global, split over the processes.
        val_size: count or fraction of the training images to hold out, 0 for none, None for the
            default. Not used if the dataset has its own validation set.
        split_seed: of the hold-out; apart from ``seed``, so that runs with different seeds share
            one hold-out.
        normalization: ``dataset`` (statistics of the images trained on), ``half``, or {mean: [...],
            std: [...]}.
        input_size: (height, width) that the model takes, in pixels.
        seed: of order and augmentation.
        num_classes: K of the one-hot targets.
        in_memory: True, False, or ``auto``: if they fill no more than half of what is free.
        num_workers: processes that read a stream, for each training process; None for one a core.
        device: that the trainer will train on; its free memory decides what ``auto`` means.
        processes: training processes on this machine, which share its cores and its memory.

    Raises:
        UserError: the images must be kept in memory and do not fit.

    Attributes:
        classes: names, in the order of the labels.
        num_train: images trained on.
        num_val: images held out, or in the dataset's own validation set.
        num_test: test images.
        in_memory: whether the images are kept in memory.
    """

    # After ``setup``; mean and deviation have a value a channel, on the 0..1 scale.
    mean: list[float]
    std: list[float]
    preprocess: Preprocess

    def __init__(
        self,
        *,
        dataset: Dataset,
        augment: nn.Module,
        batch_size: int,
        val_size: int | float | None,
        split_seed: int,
        normalization: str | Mapping[str, Sequence[float]],
        input_size: tuple[int, int],
        seed: int,
        num_classes: int,
        in_memory: bool | str,
        num_workers: int | None,
        device: torch.device,
        processes: int,
    ) -> None:
        super().__init__()
        self.dataset = dataset
        self.augment = augment
        self.batch_size = batch_size
        self.val_size = val_size
        self.split_seed = split_seed
        self.normalization = normalization
        self.input_size = input_size
        self.seed = seed
        self.num_classes = num_classes
        self.device = device
        info = describe(dataset, val_size)
        self.classes = info.classes
        self.num_train, self.num_val, self.num_test = info.num_train, info.num_val, info.num_test
        if batch_size > self.num_train:
            raise ValueError(f"batch_size {batch_size} is more than the {self.num_train} training images")
        # Each process has its own tensor: on its GPU, or on the one machine that all share.
        copies = 1 if device.type == "cuda" else processes
        self.in_memory, self._in_memory_reason = decide_in_memory(
            in_memory,
            needed=copies * sum(dataset.sizes.values()) * dataset.channels * math.prod(dataset.shape),
            free=_free_memory(device),
            device=device.type,
        )
        self._notes: list[str] = []
        if num_workers is None:
            per_process = max(1, min(MAX_WORKERS, count_cores() // processes))
            num_workers = per_process if dataset.on_disk else 0
        elif self.in_memory and not dataset.on_disk:
            self._notes.append("data.num_workers has no effect: the images are in memory, already decoded.")
        if dataset.on_disk and not self.in_memory and normalization == "dataset":
            self._notes.append(
                "mean and deviation of streamed images are measured at every start, which reads them all "
                "once; data.normalization=half, or given values, avoids that."
            )
        self.num_workers = num_workers
        self._splits: dict[str, tuple[Images | Tensor, Tensor]] = {}  # of the dataset, once loaded
        self._parts: dict[str, tuple[str, Tensor]] = {}  # "train" or "val": the split that holds it, its rows
        self._stream_readers: dict[str, StreamReader] = {}
        self._generator = torch.Generator()

    @property
    def notes(self) -> list[str]:
        """What the reader of the log should know about the data: options without effect, files left out."""
        return [*self.dataset.notes, *self._notes]

    def copy(self) -> "ImageData":
        """Return a module of the same images for another loop over them: no trainer, readers of its own."""
        other = copy.copy(self)
        other._stream_readers = {}  # a stream has one reader
        other.trainer = None
        return other

    def describe_storage(self) -> str:
        """Return where the images are kept and why, for the log."""
        images, _ = self._splits.get("train", (None, None))
        cache = f"; decoded in {images.file.parent}" if isinstance(images, CachedImages) else ""
        if self.in_memory:
            return f"in memory on {self.device.type} ({self._in_memory_reason}){cache}"
        by = f"by {self.num_workers} worker(s)" if self.num_workers else "in the training process"
        return f"streamed {by} ({self._in_memory_reason}){cache}"

    def setup(self, stage: str | None = None) -> None:
        """Prepare what the stage needs; a second call does nothing.

        Raises:
            UserError: files cannot be decoded.
        """
        if stage == "fit":
            self._part("train")
        if not hasattr(self, "preprocess"):
            if isinstance(self.normalization, Mapping):
                self.mean = [float(value) for value in self.normalization["mean"]]
                self.std = [float(value) for value in self.normalization["std"]]
            elif self.normalization == "half":
                self.mean = self.std = [0.5] * self.dataset.channels
            else:
                self.mean, self.std = channel_statistics(self._chunks())
            self.preprocess = Preprocess(size=self.input_size, mean=self.mean, std=self.std)

    def teardown(self, stage: str) -> None:
        """End the reading processes."""
        for reader in self._stream_readers.values():
            reader.close()

    def on_exception(self, exception: BaseException) -> None:
        """End the reading processes on Ctrl-C and after a failure: Lightning calls no ``teardown`` then."""
        self.teardown("")

    def train_dataloader(self) -> TrainLoader:
        """Return the loader of this rank; it starts at the position of the trainer's counters.

        Without a trainer it continues from its own position.
        """
        rank, world_size = self._rank()
        return TrainLoader(
            self._make_reader("train"),
            batch_size=self.batch_size,
            seed=self.seed,
            rank=rank,
            world_size=world_size,
            position=None if self.trainer is None else self._position,
            # Overfitting means the same few batches in every epoch.
            reshuffle=not getattr(self.trainer, "overfit_batches", 0),
        )

    def val_dataloader(self) -> EvalLoader | list[Any]:
        """Return the loader of this rank; an empty list if there is nothing to validate on."""
        return self._eval_loader("val") if self.num_val else []

    def test_dataloader(self) -> EvalLoader:
        """Return the loader of this rank."""
        return self._eval_loader("test")

    def train_images(self, number: int) -> Pair:
        """Return up to ``number`` stored training images and labels, cycling through the classes."""
        split, rows = self._part("train")
        labels = self._split(split)[1].cpu()[rows].numpy()
        order = np.argsort(labels, kind="stable")
        labels = labels[order]
        turn = np.arange(len(labels)) - np.searchsorted(labels, labels)  # how many of its class come before
        return self._read("train", torch.from_numpy(order[np.lexsort((labels, turn))[:number]]))

    def test_images(self, indices: Tensor) -> Pair:
        """Return the stored test images and labels at ``indices``, for figures after the test."""
        return self._read("test", indices)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Return float32 (B, C, H', W') and targets float32 (B, K), augmented in training."""
        images = batch.images
        targets = torch.zeros(len(images), self.num_classes, device=images.device)
        targets.scatter_(1, batch.targets[:, None], 1.0)
        if self.trainer is not None and self.trainer.training:
            rank, _ = self._rank()
            self._generator.manual_seed(derive_seed(self.seed, "augment", batch.epoch, batch.index, rank))
            images, targets = self.augment(images, targets, self._generator, batch.epoch)
        if self.preprocess.mean.device != images.device:
            self.preprocess.to(images.device)
        return batch._replace(images=self.preprocess(images), targets=targets)

    def _split(self, name: str) -> tuple[Images | Tensor, Tensor]:
        """Return the images and labels of a split of the dataset, loading it on first use."""
        if name not in self._splits:
            images, labels = self.dataset.load(name)
            if self.in_memory and isinstance(images, ImageFiles):
                images = images.decode_all()
            self._splits[name] = images, torch.from_numpy(labels)
        return self._splits[name]

    def _part(self, name: str) -> tuple[str, Tensor]:
        """Return the split that contains a part, and the rows of the part there.

        A hold-out is rows of the training split: the images of both are in memory once.
        """
        if name not in self._parts:
            split = name if name in self.dataset.sizes else "train"
            labels = self._split(split)[1].cpu()
            if split == "train" and self.num_val and "val" not in self.dataset.sizes:
                seed = derive_seed(self.split_seed, "val")
                rest, held = stratified_split(labels.numpy(), self.num_val, seed, "data.val_size")
                self._parts["train"] = "train", torch.from_numpy(rest)
                self._parts["val"] = "train", torch.from_numpy(held)
            else:
                self._parts[name] = split, torch.arange(len(labels))
        return self._parts[name]

    def _make_reader(self, name: str) -> Reader:
        """Return the reader of a part for training or evaluation: from the device, or as a stream."""
        split, rows = self._part(name)
        images, labels = self._split(split)
        device = self.device if self.trainer is None else self.trainer.strategy.root_device
        if self.in_memory:
            # Kept there, and no longer here: a data set is in memory once.
            self._splits[split] = images, labels = _on_device(images, device), labels.to(device)
            return MemoryReader(images, labels, rows)
        assert not isinstance(images, Tensor)
        if name not in self._stream_readers:
            self._stream_readers[name] = StreamReader(
                images, labels, rows, num_workers=self.num_workers, pin_memory=device.type == "cuda"
            )
        return self._stream_readers[name]

    def _read(self, name: str, indices: Tensor) -> Pair:
        """Return images and labels of a part, which stay where they are."""
        split, rows = self._part(name)
        images, labels = self._split(split)
        rows = rows[indices]
        if isinstance(images, Tensor):
            return images[rows], labels[rows]
        return torch.from_numpy(images[rows.numpy()]), labels[rows]

    def _chunks(self) -> Iterator[Tensor]:
        """Yield the images trained on in chunks of a bounded size, in order."""
        split, rows = self._part("train")
        images, labels = self._split(split)
        assert not isinstance(images, Tensor), "measured before they are moved to the device"
        num_workers = self.num_workers if isinstance(images, ImageFiles) else 0
        reader = StreamReader(images, labels, rows, num_workers=num_workers, pin_memory=False)
        size = max(1, CHUNK_BYTES // math.prod(images.shape[1:]))
        with progress_bar("Measuring mean and deviation", len(rows)) as advance:
            for chunk, _ in reader(torch.arange(len(rows)).split(size)):
                yield chunk
                advance(len(chunk))

    def _eval_loader(self, name: str) -> EvalLoader:
        rank, world_size = self._rank()
        reader = self._make_reader(name)
        order = torch.from_numpy(random_order(len(reader), derive_seed(self.split_seed, "order", name)))
        return EvalLoader(reader, order, batch_size=self.batch_size, rank=rank, world_size=world_size)

    def _rank(self) -> tuple[int, int]:
        """Return (rank, world size)."""
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size

    def _position(self) -> tuple[int, int]:
        """Return (epoch, first batch) by the counters that Lightning restores from a checkpoint."""
        assert self.trainer is not None
        return self.trainer.current_epoch, self.trainer.fit_loop.epoch_loop.batch_progress.current.ready


def _free_memory(device: torch.device) -> int | None:
    """Return the bytes that are free for a tensor on ``device``, if known.

    Images for a GPU are decoded in the machine's memory first.
    """
    host = available_memory()
    if device.type != "cuda":
        return host
    free = torch.cuda.mem_get_info(device)[0]
    return free if host is None else min(free, host)


def _on_device(images: Images | Tensor, device: torch.device) -> Tensor:
    """Return uint8 (N, C, H, W) on ``device``; images on the disk go there in chunks."""
    if not isinstance(images, LazyImages):
        return torch.as_tensor(images, device=device)
    out = torch.empty(images.shape, dtype=torch.uint8, device=device)
    size = max(1, CHUNK_BYTES // math.prod(images.shape[1:]))
    for rows in torch.arange(len(out)).split(size):
        out[rows[0] : rows[-1] + 1] = torch.from_numpy(images[rows.numpy()])
    return out
