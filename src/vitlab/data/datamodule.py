"""The data of a run: dataset → hold-out → in memory or streamed → augmented, normalised batches."""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import lightning
import numpy as np
import torch
from torch import Tensor, nn

from vitlab.core.batch import Batch
from vitlab.core.cpu_count import count_cores
from vitlab.core.seeding import derive_seed
from vitlab.data.cache import CachedImages
from vitlab.data.datasets import Dataset, describe
from vitlab.data.decode import ImageFiles, Images, LazyImages, with_bar
from vitlab.data.image_folder import FileDataset
from vitlab.data.loader import EvalLoader, Share, TrainLoader
from vitlab.data.memory import available_memory, decide_in_memory
from vitlab.data.preprocess import Preprocess, channel_statistics
from vitlab.data.reader import MemoryReader, Reader, StreamReader
from vitlab.data.split import random_order, rank_in_class, stratified_split

Pair = tuple[Tensor, Tensor]  # uint8 (N, C, H, W), int64 (N,)

MAX_WORKERS = 16  # by default: more have not kept a GPU busier, and each keeps two batches in shared memory
CHUNK_BYTES = 2**24  # statistics are measured in chunks of this size


class ImageData(lightning.LightningDataModule):
    """Batches of a dataset for training, validation and testing.

    The images are kept in one tensor on the training device (`MemoryReader`) or read as they are
    needed (`StreamReader`); the batches are the same, bit for bit. The test images are not even
    decoded before ``test_dataloader`` is called.

    Args:
        augment: (images uint8, soft targets, CPU generator, epoch) → (images, soft targets), on the
            batch's device.
        batch_size, val_size, split_seed, normalization, in_memory, num_workers: as in ``conf/data``.
        input_size: (height, width) that the model takes, in pixels.
        seed: of order and augmentation.
        num_classes: K of the one-hot targets.
        device: that the trainer will train on; its free memory decides what ``auto`` means.
        processes: training processes on this machine, which share its cores and its memory.

    Raises:
        UserError: the images must be kept in memory and do not fit.

    Attributes:
        classes, num_train, num_val, num_test: as of `DatasetInfo`.
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
        self.split_seed = split_seed
        self.normalization = normalization
        self.input_size = input_size
        self.seed = seed
        self.num_classes = num_classes
        self.device = device
        info = describe(dataset, val_size)
        self.classes = info.classes
        self.num_train, self.num_val, self.num_test = info.num_train, info.num_val, info.num_test
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
        self._parts: dict[str, tuple[_Split, Tensor]] = {}  # of "train", "val", "test": images, which rows
        self._stream_readers: dict[str, StreamReader] = {}

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
        images = self._parts["train"][0].images if "train" in self._parts else None
        cache = f"; decoded in {images.file.parent}" if isinstance(images, CachedImages) else ""
        if self.in_memory:
            return f"in memory on {self.device.type} ({self._in_memory_reason}){cache}"
        by = f"by {self.num_workers} worker(s)" if self.num_workers else "in the training process"
        return f"streamed {by} ({self._in_memory_reason}){cache}"

    def setup(self, stage: str | None = None) -> None:
        """Prepare what the stage needs; a second call does nothing. Raises UserError for broken files."""
        if stage == "fit":
            if self.batch_size > self.num_train:
                raise ValueError(
                    f"batch_size {self.batch_size} is more than the {self.num_train} training images"
                )
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
        """Return the loader of this rank; without a trainer's counters it continues from its own position."""
        return TrainLoader(
            self._make_reader("train"),
            self._share(),
            seed=self.seed,
            position=None if self.trainer is None else self._position,
            # Overfitting means the same few batches in every epoch.
            reshuffle=not getattr(self.trainer, "overfit_batches", 0),
        )

    def val_dataloader(self) -> EvalLoader | list[Any]:
        """Return the loader of this rank; an empty list if there is nothing to validate on."""
        return self.eval_dataloader("val") if self.num_val else []

    def test_dataloader(self) -> EvalLoader:
        """Return the loader of this rank."""
        return self.eval_dataloader("test")

    def eval_dataloader(self, name: str) -> EvalLoader:
        """Return the loader of this rank for ``train``, ``val`` or ``test``, in a fixed random order."""
        reader = self._make_reader(name)
        order = torch.from_numpy(random_order(len(reader), derive_seed(self.split_seed, "order", name)))
        return EvalLoader(reader, self._share(), order)

    def train_images(self, number: int) -> Pair:
        """Return up to ``number`` stored training images and labels, cycling through the classes."""
        split, rows = self._part("train")
        labels = split.labels[rows].numpy()
        order = np.argsort(labels, kind="stable")
        labels = labels[order]
        chosen = np.lexsort((labels, rank_in_class(labels)))[:number]
        return self.read("train", torch.from_numpy(order[chosen]))

    def read(self, name: str, indices: Tensor) -> Pair:
        """Return images and labels of ``train``, ``val`` or ``test``, on the device that holds them."""
        split, rows = self._part(name)
        rows = rows[indices]
        images = torch.as_tensor(split.images[rows.numpy()])
        return images, split.labels[rows].to(images.device)

    def locate(self, epoch: int, index: int) -> dict[str, list[Any]]:
        """Return which images this rank's micro-batch of an epoch held.

        By their places in the training split, before images are held out of it, and by their files, if any.
        """
        assert self.trainer is not None
        loader = cast(TrainLoader, self.trainer.train_dataloader)
        rows = loader.reader.rows[loader.plan(epoch)[index]].tolist()
        if not isinstance(self.dataset, FileDataset):
            return {"indices": rows}
        files = self.dataset.files("train")
        return {"indices": rows, "files": [str(files[row]) for row in rows]}

    def some_images(self, number: int) -> Tensor:
        """Return stored validation images, uint8 (n, C, H, W); training images where none are held out."""
        split = "val" if self.num_val else "train"
        total = self.num_val or self.num_train
        return self.read(split, torch.linspace(0, total - 1, min(number, total)).long())[0]

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Return float32 (B, C, H', W') and targets float32 (B, K), augmented in training."""
        images = batch.images
        targets = torch.zeros(len(images), self.num_classes, device=images.device)
        targets.scatter_(1, batch.targets[:, None], 1.0)
        if self.trainer is not None and self.trainer.training:
            place = batch.epoch, batch.index, self.trainer.global_rank
            generator = torch.Generator().manual_seed(derive_seed(self.seed, "augment", *place))
            images, targets = self.augment(images, targets, generator, batch.epoch)
        if self.preprocess.mean.device != images.device:
            self.preprocess.to(images.device)
        return batch._replace(images=self.preprocess(images), targets=targets)

    def _part(self, name: str) -> tuple["_Split", Tensor]:
        """Return the split that contains a part, loading it on first use, and the rows of the part there.

        A hold-out is rows of the training split: the images of both are in memory once.
        """
        if name not in self._parts:
            source = name if name in self.dataset.sizes else "train"
            images, labels = self.dataset.load(source)
            if self.in_memory and isinstance(images, ImageFiles):
                images = images.decode_all()
            split = _Split(images, torch.from_numpy(labels))
            if source == "train" and self.num_val and "val" not in self.dataset.sizes:
                seed = derive_seed(self.split_seed, "val")
                rest, held = stratified_split(labels, self.num_val, seed, "data.val_size")
                self._parts["train"] = split, torch.from_numpy(rest)
                self._parts["val"] = split, torch.from_numpy(held)
            else:
                self._parts[name] = split, torch.arange(len(labels))
        return self._parts[name]

    def _make_reader(self, name: str) -> Reader:
        """Return the reader of a part for training or evaluation: from the device, or as a stream."""
        split, rows = self._part(name)
        device = self.device if self.trainer is None else self.trainer.strategy.root_device
        if self.in_memory:
            if isinstance(split.images, LazyImages):
                split.images = split.images[np.arange(len(split.labels))]
            # There, and no longer here: a data set is in memory once.
            split.images = torch.as_tensor(split.images, device=device)
            return MemoryReader(split.images, split.labels, rows)
        if name not in self._stream_readers:
            self._stream_readers[name] = split.stream(rows, self.num_workers, device.type == "cuda")
        return self._stream_readers[name]

    def _chunks(self) -> Iterator[Tensor]:
        """Yield the images trained on in chunks of a bounded size, in order."""
        split, rows = self._part("train")
        reader = split.stream(rows, self.num_workers if isinstance(split.images, ImageFiles) else 0)
        size = max(1, CHUNK_BYTES // math.prod(split.images.shape[1:]))
        chunks = reader(torch.arange(len(rows)).split(size))
        for images, _ in with_bar(chunks, "Measuring mean and deviation", len(rows), size):
            yield images

    def _share(self) -> Share:
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        return Share(self.batch_size, rank, world_size)

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


@dataclass
class _Split:
    """A split of the dataset: images uint8 (M, C, H, W), labels int64 (M,) on the CPU."""

    images: Images | Tensor
    labels: Tensor

    def stream(self, rows: Tensor, num_workers: int, pin_memory: bool = False) -> StreamReader:
        assert not isinstance(self.images, Tensor)
        return StreamReader(self.images, self.labels, rows, num_workers, pin_memory)
