"""What does not fit in how a run trains: its length, its schedule, its devices, its teacher."""

from vitlab.config.cross_checks.data import train_images
from vitlab.config.cross_checks.model import is_distilled
from vitlab.config.cross_checks.reader import Conflicts, Reader
from vitlab.config.plan import duration_names, make_plan
from vitlab.config.teacher import TIMM
from vitlab.config.types import alternatives, show
from vitlab.core.errors import UserError


def training_conflicts(read: Reader) -> Conflicts:
    """Yield (key, sentence) for what does not fit in how the run trains."""
    yield from _duration(read)
    yield from _schedule(read)
    yield from _device(read)
    yield from _teacher(read)


def _duration(read: Reader) -> Conflicts:
    epochs, steps = read("trainer.max_epochs"), read("trainer.max_steps")
    for name, least, most in (
        ("epochs", read("trainer.min_epochs"), epochs),
        ("steps", read("trainer.min_steps"), steps),
    ):
        if least is not None and most is not None and -1 != most < least:
            yield (
                f"trainer.min_{name}",
                f"trainer.min_{name}={least} is more than trainer.max_{name}={most}: lower the "
                "first or raise the second",
            )


def _schedule(read: Reader) -> Conflicts:
    name = str(read("scheduler._target_") or "").rpartition(".")[2]
    if not name:
        return
    epochs, steps = read("trainer.max_epochs"), read("trainer.max_steps")
    if epochs == -1 and steps == -1 and read("trainer.max_time") is not None:
        if name != "constant":
            yield (
                "scheduler",
                f"scheduler={name} needs the length of the run in advance, and trainer.max_time "
                "alone does not give it: set trainer.max_epochs or trainer.max_steps, or take "
                "scheduler=constant",
            )
        return
    durations = duration_names(read("scheduler"))
    every = "scheduler.every_epochs"
    rivals = [(f"scheduler.{name}_epochs", f"scheduler.{name}_steps") for name in durations]
    rivals += [(every, "scheduler.milestone_epochs"), (every, "scheduler.milestone_steps")]
    for one, other in rivals:
        if read(one) is not None and read(other) is not None:
            yield (
                other,
                f"{one}={show(read(one))} and {other}={show(read(other))} are both given: keep one, set the "
                "other to null",
            )
            return
    images, batch = train_images(read), read("data.batch_size")
    complete = None not in (batch, epochs, steps) and read.sound("trainer", "scheduler", "data")
    if images is not None and complete:
        if batch <= images:  # else it has been said
            try:
                make_plan(read.plain, images)
            except UserError as error:
                yield "scheduler", str(error)
        return
    for duration in durations if epochs not in (None, -1) else ():
        key = f"scheduler.{duration}_epochs"
        asked = read(key)
        if asked is not None and max(asked if isinstance(asked, list) else [asked]) > epochs:
            yield (
                key,
                f"{key}={show(asked)} is longer than the whole run of {epochs} epochs. Shorten it, train "
                "longer (trainer.max_epochs), or leave it null",
            )


def _device(read: Reader) -> Conflicts:
    devices, batch = read("trainer.devices"), read("data.batch_size")
    nodes = read("trainer.num_nodes") or 1
    count = len(devices) if isinstance(devices, list) else devices
    if isinstance(count, int) and count > 0 and batch is not None and batch % (count * nodes):
        world = count * nodes
        lower = batch - batch % world
        near = [lower, lower + world] if lower else [world]
        yield (
            "data.batch_size",
            f"data.batch_size={batch} cannot be split evenly over {world} devices (it is the size "
            f"over all of them): choose a multiple of {world}, such as {alternatives(near)}",
        )
    precision = read("trainer.precision")
    if read("trainer.accelerator") == "cpu" and precision in ("16-mixed", "16-true", "16", 16):
        yield (
            "trainer.precision",
            f"trainer.precision={precision} does not work on a CPU: choose bf16-mixed or 32-true, "
            "or trainer.accelerator=gpu",
        )


def _teacher(read: Reader) -> Conflicts:
    if read.is_null("task.teacher"):
        yield (
            "task.teacher",
            "task=distill needs a trained teacher: add task.teacher=RUN_FOLDER, such as that of `python "
            f"train.py model=resnet18`, or task.teacher={TIMM}NAME with task.teacher_checkpoint=FILE",
        )
    teacher, file = read("task.teacher"), read("task.teacher_checkpoint")
    if teacher and teacher.startswith(TIMM) and file is None:
        yield (
            "task.teacher_checkpoint",
            f"task.teacher={teacher} needs weights that know this data's classes, which timm has not: add "
            "task.teacher_checkpoint=FILE, or fine-tune the network (model=timm_vit_b16 model.name="
            f"{teacher.removeprefix(TIMM)}) and give that run's folder as task.teacher",
        )
    elif teacher and file and not teacher.startswith(TIMM):
        yield (
            "task.teacher_checkpoint",
            f"task.teacher_checkpoint is for task.teacher={TIMM}NAME: leave it out, or give our own "
            "checkpoint as task.teacher itself",
        )
    weight = read("task.weight")
    if weight in (0, 1) and is_distilled(read):
        yield (
            "task.weight",
            f"task.weight={show(weight)} leaves {'the labels' if weight else 'the teacher'} out, and one of "
            "this model's two heads would learn nothing: choose a number between, such as 0.5, or another "
            "model",
        )
