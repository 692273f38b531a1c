"""The trained network that a student of ``task=distill`` learns from."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitlab.config.teacher import TIMM, teacher_file
from vitlab.core.errors import UserError
from vitlab.core.files import sha256
from vitlab.core.run_folder import RunFolder, Summary, TeacherRecord
from vitlab.data.datasets import Dataset
from vitlab.data.preprocess import Preprocess
from vitlab.models import timm_model
from vitlab.models.flops import count_parameters, flops_per_image, show_flops
from vitlab.training.instantiate import load_net


class Teacher:
    """A frozen network that is shown the student's batches.

    No `nn.Module` on purpose: a module inside the student's LightningModule would go into its checkpoints,
    its averaged weights, its optimizer and its train mode.

    Args:
        net: normalised images → logits.
        preprocess: pixels → what ``net`` takes.
        order: where the student's classes are among the teacher's; None: at the same places.
        path, checkpoint: as given, and the file.
        digest: SHA-256 of the file.
        model: its name.
        metrics: that are known of it.
        notes: what the person who starts the run should know.

    Attributes:
        record: what summary.json and the student's checkpoints keep of it.
        flops: of an image.
    """

    def __init__(
        self,
        net: nn.Module,
        preprocess: Preprocess,
        *,
        order: list[int] | None,
        path: str,
        checkpoint: str,
        digest: str,
        model: str,
        metrics: Mapping[str, float],
        notes: Sequence[str],
    ) -> None:
        self.net = net.eval().requires_grad_(False)
        self.preprocess = preprocess
        self.order = order
        self.flops = flops_per_image(net, preprocess.size, len(preprocess.mean))
        self.record: TeacherRecord = {
            "path": path,
            "checkpoint": checkpoint,
            "sha256": digest,
            "model": model,
            "metrics": dict(metrics),
            "parameters": count_parameters(net),
            "flops_per_image": self.flops,
        }
        self.notes = list(notes)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Teacher":
        return self  # an averaged copy of the student needs no teacher of its own

    def undo(self, *, mean: Sequence[float], std: Sequence[float]) -> None:
        """Say how the student's batches are normalised: one value a channel, on the 0..1 scale."""
        self.mean, self.std = (
            torch.tensor(list(values), dtype=torch.float32)[:, None, None] for values in (mean, std)
        )

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Return the teacher's logits (B, K), in the student's order of classes.

        The one place where images go from the student's normalisation and size to the teacher's.

        Args:
            images: (B, C, H, W) as the student sees them: augmented, mixed and normalised.
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
            f"{show_flops(self.flops)} an image"
        )

    def describe_task(self, task: Mapping[str, Any], student_flops: int) -> str:
        """Return how the ``task`` node asks it, and what that costs beside the student's own steps."""
        how = f"soft, temperature {task['temperature']:g}" if task["kind"] == "soft" else "hard"
        share = self.flops / (3 * student_flops)  # backward costs two forwards
        cost = f"asking the teacher costs {share:.0%} of the student's own step"
        return f"{how}, weight {task['weight']:g}; {cost}"

    def all_notes(self, task: Mapping[str, Any], overrides: Sequence[str]) -> Iterator[str]:
        """Yield its notes, and what in the ``task`` node has no effect.

        Args:
            task: of the config.
            overrides: as they were typed: a default that has no effect is no news.
        """
        yield from self.notes
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
    channels = len(teacher.preprocess.mean)
    if channels != dataset.channels:
        raise UserError(
            f"task.teacher={given} takes images of {channels} channel(s), and {dataset.name} has "
            f"{dataset.channels}. Train a teacher on this data: python train.py model=resnet18 …"
        )
    return teacher


def _from_run(given: str, checkpoint: Path, data: dict[str, Any], dataset: Dataset) -> Teacher:
    """Return the network of one of our checkpoints, with what its run folder says, if there is one."""
    digest = sha256(checkpoint)
    net, meta = load_net(checkpoint, digest=digest)
    notes = []
    metrics: dict[str, float] = {}
    folder = RunFolder(checkpoint.parent.parent)
    if folder.config.is_file():
        summary = Summary(folder, writable=False).data
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
    config = meta["config"]
    theirs = config["data"]
    if theirs["kind"] == data["kind"] and any(theirs[k] != data[k] for k in ("val_size", "split_seed")):
        notes.append(
            "the teacher held out other images (data.val_size, data.split_seed): it has seen some that this "
            "run validates on, so compare val/accuracy with care, or train a teacher on the same split."
        )
    return Teacher(
        net,
        Preprocess(size=meta["input_size"], mean=meta["mean"], std=meta["std"]),
        order=order,
        path=given,
        checkpoint=checkpoint.name,
        digest=digest,
        model=config["model"].get("name") or config["choices"]["model"],
        metrics=metrics,
        notes=notes,
    )


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
    images = net.loaded.images
    note = (
        f"{file} names no classes: they are taken to be in the data's order, and images are normalised "
        "as timm says of this network. train/teacher_accuracy in metrics.csv tells whether that was so."
    )
    return Teacher(
        net,
        Preprocess(size=size, mean=images.mean, std=images.std),
        order=None,
        path=given,
        checkpoint=str(file),
        digest=sha256(file),
        model=name,
        metrics={},
        notes=[note],
    )
