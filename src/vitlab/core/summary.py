"""summary.json: what is known about a run, as it is written and read again."""

import contextlib
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from vitlab.core.claim import end_if_lost
from vitlab.core.errors import UserError
from vitlab.core.files import write_json
from vitlab.core.untrusted import misfits, read_json


class ModelSummary(TypedDict, total=False):
    """The network: its name, how large it is, and multiply-adds x 2 of a forward pass."""

    name: str | None
    parameters: int | None
    trainable_parameters: int
    flops_per_image: int | None


class DataSummary(TypedDict):
    """The name of the data set, and how many images of it are trained, validated and tested on.

    fingerprint: of image files, which of them (`vitlab.data.image_folder.FileDataset.fingerprint`); None of
    data that the config names; absent from older runs.
    """

    name: str
    train: int
    val: int
    test: int
    fingerprint: NotRequired[str | None]


class TrainSummary(TypedDict, total=False):
    """How far the training came and what it cost."""

    epochs: int
    optimizer_steps: int
    skipped_steps: int | None  # without effect because float16 overflowed; None where nothing is scaled
    images_per_second: float | None  # of training alone, see `vitlab.training.callbacks.Throughput`
    wall_seconds: float  # of all sessions that kept work, everything included
    # "host" and "device", of one process, in its last session
    peak_memory_bytes: dict[str, int | None] | None
    resumed_at: list[int]  # the optimizer step at each resume


class TeacherRecord(TypedDict):
    """Who a student learns from: as given, its file and that file's hash, and how good and large it is."""

    path: str
    checkpoint: str
    sha256: str
    model: str
    metrics: dict[str, float]
    parameters: int
    flops_per_image: int


class Turned(TypedDict):
    """The epochs at which validation had its lowest loss and its best accuracy; None without validation."""

    loss_epoch: int | None
    accuracy_epoch: int | None


class SummaryData(TypedDict, total=False):
    """The keys of ``summary.json``."""

    status: str  # a `vitlab.core.run_folder.State`, but never skipped
    error: str  # why it failed, in a sentence
    # diverged, user (a mistake that a person can mend), rank (another process of the run ended) or fault
    # (anything else: see train.log).
    error_kind: str
    metrics: dict[str, float]  # val/… of the best epoch and test/…
    model: ModelSummary
    data: DataSummary
    train: TrainSummary
    teacher: TeacherRecord
    seed: int
    overrides: list[str]  # as typed
    device: str | None
    versions: dict[str, str]
    commit: str | None
    precision: str
    matmul_precision: str
    compiled: bool
    tested: str  # which weights were tested
    per_class: dict[str, float]  # the test accuracy of each class, 0..1
    turned: Turned
    alarms: list[Any]  # what looks like a fault, see `vitlab.training.alarms.Alarm`


class Summary:
    """``summary.json``: what is known about the run, rewritten atomically at every change.

    Args:
        path: of the file, in the run's folder.
        writable: False to read only: one process of a run writes.
    """

    def __init__(self, path: Path, *, writable: bool = True) -> None:
        self.path = path
        self.writable = writable
        self.data: SummaryData = {}  # so it stays where there is no such file, or none that can be read
        with contextlib.suppress(FileNotFoundError, IsADirectoryError, ValueError):
            content = read_json(self.path)
            wrong = {key.partition(".")[0] for key in misfits(content, SummaryData)}
            # "" is the whole.
            self.data = {} if "" in wrong else {k: v for k, v in content.items() if k not in wrong}  # type: ignore[assignment]

    def begin(self, seed: int, overrides: list[str], versions: dict[str, str], commit: str | None) -> None:
        """Write what is known before the run; the rest is null until it is measured."""
        self.update(
            status="waiting",
            metrics={},
            model={"name": None, "parameters": None, "flops_per_image": None},
            train={
                "epochs": 0,
                "optimizer_steps": 0,
                "images_per_second": None,
                "wall_seconds": 0.0,
                "peak_memory_bytes": None,
                "resumed_at": [],
            },
            seed=seed,
            overrides=overrides,
            device=None,
            versions=versions,
            commit=commit,
            turned={"loss_epoch": None, "accuracy_epoch": None},
            alarms=[],
        )

    def update(self, **changes: Any) -> None:
        """Merge ``changes`` (dictionaries one level deep) and write the file.

        Raises:
            UserError: the run folder is gone.
        """
        data: dict[str, Any] = self.data  # type: ignore[assignment]
        for key, value in changes.items():
            if isinstance(value, dict) and isinstance(data.get(key), dict):
                data[key] |= value
            else:
                data[key] = value
        if not self.writable:
            return
        end_if_lost(self.path.parent)
        try:
            write_json(self.path, self.data)
        except FileNotFoundError:
            raise UserError(
                f"{self.path.parent} was moved or deleted during its run, which therefore ends. What it "
                "had saved is where the folder is now: continue with resume=<there>."
            ) from None
