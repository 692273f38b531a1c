"""What does not fit in how a run trains: its length, its schedule, its devices, its teacher."""

from vitlab.config.cross_checks.config_reader import ConfigReader, Conflicts
from vitlab.config.cross_checks.data import train_images
from vitlab.config.cross_checks.model import is_distilled
from vitlab.config.plan import duration_names, make_plan
from vitlab.config.teacher import TIMM
from vitlab.config.types import alternatives, show
from vitlab.core.errors import UserError
from vitlab.core.extras import need


def training_conflicts(read: ConfigReader) -> Conflicts:
    """Yield what does not fit in how the run trains."""
    for unit in ("epochs", "steps"):
        least, most = read(f"trainer.min_{unit}"), read(f"trainer.max_{unit}")
        if None not in (least, most) and -1 != most < least:
            yield (
                f"trainer.min_{unit}",
                f"is more than trainer.max_{unit}={most}: lower the first or raise the second",
            )
    unvalidated = next((k for k in ("data.val_size", "trainer.limit_val_batches") if read(k) == 0), None)
    if read("callbacks.early_stopping.patience") is not None and unvalidated:
        yield (
            "callbacks.early_stopping.patience",
            f"needs validation, which {unvalidated}=0 turns off: set one of them to null",
        )
    unsaved = "trainer.fast_dev_run" if read("trainer.fast_dev_run") else ""
    if read("trainer.enable_checkpointing") is False:
        unsaved = "trainer.enable_checkpointing"
    if unsaved and read("callbacks.checkpoint.requeue"):
        yield (
            "callbacks.checkpoint.requeue",
            f"needs a checkpoint to go on from, and {unsaved}={show(read(unsaved))} keeps none: drop one",
        )
    if read("trainer.barebones"):
        yield (
            "trainer.barebones",
            "turns off all that a run reports and keeps, so there would be no result: leave it out, and for "
            "bare speed set logger=none callbacks.figures=false trainer.enable_progress_bar=false",
        )
    yield from _schedule(read)
    yield from _device(read)
    yield from _sharded(read)
    yield from _teacher(read)
    yield from _logger(read)


def _schedule(read: ConfigReader) -> Conflicts:
    name = read.class_name("scheduler")
    if not name:
        return
    epochs, steps = read("trainer.max_epochs"), read("trainer.max_steps")
    if epochs == -1 and steps == -1 and read("trainer.max_time") is not None:
        if name != "constant":
            yield (
                "scheduler",
                f"scheduler={name} needs the length of the run in advance, and trainer.max_time alone does "
                "not give it: set trainer.max_epochs or trainer.max_steps, or take scheduler=constant",
            )
        return
    durations = duration_names(read("scheduler"))
    every = "scheduler.every_epochs"
    rivals = [(f"scheduler.{name}_epochs", f"scheduler.{name}_steps") for name in durations]
    rivals += [(every, "scheduler.milestone_epochs"), (every, "scheduler.milestone_steps")]
    for one, other in rivals:
        if None not in (read(one), read(other)):
            yield one, f"and {other}={show(read(other))} are both given: keep one, set the other to null"
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
            yield key, f"is longer than the whole run of {epochs} epochs (trainer.max_epochs): shorten it"


def _device(read: ConfigReader) -> Conflicts:
    devices, batch = read("trainer.devices"), read("data.batch_size")
    count = len(devices) if isinstance(devices, list) else devices
    if isinstance(count, int) and count > 0 and batch is not None:
        world = count * (read("trainer.num_nodes") or 1)
        if rest := batch % world:
            near = [size for size in (batch - rest, batch - rest + world) if size]
            yield (
                "data.batch_size",
                f"cannot be split evenly over {world} devices (it is the size over all of them): choose a "
                f"multiple of {world}, such as {alternatives(near)}",
            )
    if read("trainer.accelerator") == "cpu" and str(read("trainer.precision")).startswith("16"):
        yield "trainer.precision", "does not work on a CPU: choose bf16-mixed or 32-true, or use a GPU"


def _sharded(read: ConfigReader) -> Conflicts:
    if read("trainer.strategy") != "fsdp":
        return
    for key in ("callbacks.ema.decay", "callbacks.diagnostics.every_epochs"):
        if read(key) is not None:
            yield key, "needs the whole network on one device: set it to null, or trainer.strategy=ddp"
    if str(read("trainer.precision")) in ("16", "16-mixed"):
        yield "trainer.precision", "does not work with trainer.strategy=fsdp: choose bf16-mixed or 32-true"


def _teacher(read: ConfigReader) -> Conflicts:
    if read.is_null("task.teacher"):
        yield (
            "task.teacher",
            ", but task=distill needs a trained teacher: add task.teacher=RUN_FOLDER, such as that of "
            f"`python train.py model=resnet18`, or task.teacher={TIMM}NAME with task.teacher_checkpoint=FILE",
        )
    teacher, file = read("task.teacher"), read("task.teacher_checkpoint")
    if teacher and teacher.startswith(TIMM) and file is None:
        yield (
            "task.teacher",
            "needs weights that know this data's classes, which timm has not: add "
            "task.teacher_checkpoint=FILE, or fine-tune the network (model=timm_vit_b16 model.name="
            f"{teacher.removeprefix(TIMM)}) and give that run's folder as task.teacher",
        )
    elif teacher and file and not teacher.startswith(TIMM):
        yield "task.teacher_checkpoint", "is for networks of timm: leave it out, or give it as task.teacher"
    weight = read("task.weight")
    if weight in (0, 1) and is_distilled(read):
        yield (
            "task.weight",
            f"leaves {'the labels' if weight else 'the teacher'} out, and one of this model's two heads "
            "would learn nothing: choose a number between, such as 0.5, or another model",
        )


def _logger(read: ConfigReader) -> Conflicts:
    for name in ("mlflow", "wandb"):
        if not read(f"logger.{name}"):
            continue
        if read("benchmark"):
            yield f"logger.{name}", f"benchmark.py throws its runs away: leave {name} out of logger"
        try:
            need(name, extra=name, what=f"logger={name}")
        except UserError as error:
            yield f"logger.{name}", str(error)
