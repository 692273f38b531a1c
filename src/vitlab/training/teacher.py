"""The trained network that a student of ``task=distill`` learns from."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitlab.config.teacher import TIMM, teacher_file
from vitlab.core.errors import UserError
from vitlab.core.files import sha256
from vitlab.core.run_folder import RunFolder
from vitlab.core.summary import TeacherRecord
from vitlab.data.datasets import Dataset
from vitlab.data.preprocess import Preprocess
from vitlab.models import timm_model
from vitlab.models.flops import count_parameters, flops_per_image, show_flops
from vitlab.training.instantiate import load_net


@dataclass(eq=False)
class Teacher:
    """A frozen network that is shown the student's batches.

    No `nn.Module` on purpose: a module inside the student's LightningModule would go into its checkpoints,
    its averaged weights, its optimizer and its train mode.

    Attributes:
        net: normalised images → logits.
        preprocess: pixels → what ``net`` takes.
        record: what summary.json and the student's checkpoints keep of it.
        notes: what the person who starts the run should know.
        order: where the student's classes are among the teacher's; None: at the same places.
    """

    net: nn.Module
    preprocess: Preprocess
    record: TeacherRecord
    notes: list[str]
    order: list[int] | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> "Teacher":
        return self  # an averaged copy of the student needs no teacher of its own

    def undo(self, *, mean: Sequence[float], std: Sequence[float]) -> None:
        """Say how the student's batches are normalised: one value a channel, on the 0..1 scale."""
        self.mean, self.std = (torch.tensor(v, dtype=torch.float32)[:, None, None] for v in (mean, std))

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Return the teacher's logits (B, K), in the student's order of classes.

        Args:
            images: (B, C, H, W) as the student sees them: augmented, mixed, and normalised in its way.
        """
        if self.mean.device != images.device:
            self.mean, self.std = self.mean.to(images.device), self.std.to(images.device)
            self.net.to(images.device)
            self.preprocess.to(images.device)
        pixels = images * self.std + self.mean  # on the 0..1 scale
        logits = self.net(self.preprocess(pixels))
        return logits if self.order is None else logits[:, self.order]

    def describe(self) -> str:
        """Return who it is and how good, for the log."""
        record = self.record
        accuracy = [f"{k} {v:.2%}" for k, v in record["metrics"].items() if k.endswith("/accuracy")]
        height, width = self.preprocess.size
        return (
            f"{record['path']}: {record['model']}, {record['parameters']:,} parameters, "
            f"{', '.join(accuracy) or 'accuracy unknown'}; sees {height} x {width} pixels at "
            f"{show_flops(record['flops_per_image'])} an image"
        )

    def describe_task(self, task: Mapping[str, Any], student_flops: int) -> str:
        """Return how the ``task`` node asks it, and what that costs beside the student's own steps."""
        how = f"soft, temperature {task['temperature']:g}" if task["kind"] == "soft" else "hard"
        share = self.record["flops_per_image"] / (3 * student_flops)  # backward costs two forwards
        cost = f"asking the teacher costs {share:.0%} of the student's own step"
        return f"{how}, weight {task['weight']:g}; {cost}"

    def all_notes(self, task: Mapping[str, Any], overrides: Sequence[str]) -> Iterator[str]:
        """Yield its notes, and what in the ``task`` node has no effect."""
        yield from self.notes
        # Where it was typed: a default that has no effect is no news.
        if task["kind"] == "hard" and any(typed.startswith("task.temperature=") for typed in overrides):
            yield "task.temperature has no effect with task.kind=hard."
        if task["weight"] == 0:
            yield (
                "task.weight=0: the teacher is asked and has no effect; task=classify trains the same for "
                "less."
            )
        if task["weight"] == 1 and task["label_smoothing"]:
            yield "task.label_smoothing has no effect with task.weight=1: the labels are not in the loss."


def load_teacher(config: dict[str, Any], dataset: Dataset) -> Teacher:
    """Return the teacher that ``config["task"]`` names, for the classes of ``dataset``.

    Raises:
        UserError: there is none, its file is damaged, or it does not know exactly these classes.
    """
    task = config["task"]
    given, file = task["teacher"], teacher_file(task)
    if given.startswith(TIMM):
        teacher = _from_timm(given, file, dataset)
    else:
        teacher = _from_run(given, file, config["data"], dataset)
    if (channels := len(teacher.preprocess.mean)) != dataset.channels:
        raise UserError(
            f"task.teacher={given} takes images of {channels} channel(s), and {dataset.name} has "
            f"{dataset.channels}. Train a teacher on this data: python train.py model=resnet18 …"
        )
    teacher.net.eval().requires_grad_(False)
    return teacher


def _from_run(given: str, checkpoint: Path, data: dict[str, Any], dataset: Dataset) -> Teacher:
    """Return the network of one of our checkpoints, with what its run folder says, if there is one."""
    digest = sha256(checkpoint)
    net, meta = load_net(checkpoint, digest=digest)
    notes: list[str] = []
    metrics: dict[str, float] = {}
    folder = RunFolder(checkpoint.parent.parent)
    if folder.config.is_file():
        summary = folder.read_summary()
        # The summary speaks of the best checkpoint, or of the last where nothing was held out.
        if checkpoint.name == folder.best.name or not folder.best.exists():
            metrics = summary.get("metrics", {})
        if summary.get("status") != "finished":
            notes.append(
                f"the teacher's run is {summary.get('status', 'of unknown status')} and not finished: its "
                f"{checkpoint.name} is used as it is now, and this run will resume with that file only."
            )
    order = None
    if meta["classes"] != list(dataset.classes):
        order = _order(given, meta["classes"], dataset)
        notes.append("the teacher's classes are in another order than the data's; they are matched by name.")
    config, theirs = meta["config"], meta["config"]["data"]
    if theirs["kind"] == data["kind"] and any(theirs[k] != data[k] for k in ("val_size", "split_seed")):
        notes.append(
            "the teacher held out other images (data.val_size, data.split_seed): it has seen some that this "
            "run validates on, so compare val/accuracy with care, or train a teacher on the same split."
        )
    preprocess = Preprocess(size=meta["input_size"], mean=meta["mean"], std=meta["std"])
    record: TeacherRecord = {
        "path": given,
        "checkpoint": checkpoint.name,
        "sha256": digest,
        "model": config["model"].get("name") or config["choices"]["model"],
        "metrics": metrics,
        "parameters": count_parameters(net),
        "flops_per_image": flops_per_image(net, preprocess.size, len(meta["mean"])),
    }
    return Teacher(net, preprocess, record, notes, order)


def _order(given: str, theirs: list[str], dataset: Dataset) -> list[int]:
    """Return the place of each class of ``dataset`` among the teacher's."""
    ours = list(dataset.classes)
    if sorted(theirs) != sorted(ours):
        differ = [f"'{name}'" for name in [*ours, *theirs] if (name in ours) != (name in theirs)]
        raise UserError(
            f"task.teacher={given} knows {len(theirs)} classes, {dataset.name} has {len(ours)}, and a "
            f"teacher must know exactly these; {', '.join(differ[:3])}{' …' if differ[3:] else ''} "
            f"{'is' if len(differ) == 1 else 'are'} on one side only. Train a teacher on this data: "
            "python train.py model=resnet18 …"
        )
    return [theirs.index(name) for name in ours]


def _from_timm(given: str, file: Path, dataset: Dataset) -> Teacher:
    """Return timm's network, with weights from ``file`` and the preprocessing that timm publishes for it."""
    name, classes = given.removeprefix(TIMM), list(dataset.classes)
    try:
        channels, *size = timm_model.TimmModel.find(name, {}).input_size
        net = timm_model.TimmModel(
            name=name,
            pretrained=False,
            checkpoint_path=str(file),
            num_classes=len(classes),
            image_size=size,
            channels=channels,
            drop_path=None,
            kwargs={},
        )
    except UserError as error:
        raise UserError(
            f"task.teacher={given} is read as model.name={name} model.checkpoint_path={file}, and: {error}"
        ) from error
    assert net.loaded is not None
    assert net.loaded.images is not None
    if net.loaded.new:
        raise UserError(
            f"task.teacher_checkpoint={file} has no head for the {len(classes)} classes of {dataset.name} "
            f"({', '.join(net.loaded.new)} would start at random), and a teacher must know them. Fine-tune "
            f"it first (python train.py model=timm_vit_b16 model.name={name} model.checkpoint_path={file}) "
            "and give that run's folder as task.teacher."
        )
    note = (
        f"{file} names no classes: they are taken to be in the data's order, and images are normalised "
        "as timm says of this network. train/teacher_accuracy in metrics.csv tells whether that was so."
    )
    preprocess = Preprocess(size=size, mean=net.loaded.images.mean, std=net.loaded.images.std)
    record: TeacherRecord = {
        "path": given,
        "checkpoint": str(file),
        "sha256": sha256(file),
        "model": name,
        "metrics": {},
        "parameters": count_parameters(net),
        "flops_per_image": flops_per_image(net, preprocess.size, channels),
    }
    return Teacher(net, preprocess, record, [note])
