"""Cross-checks: values that are right alone and wrong together, with the way on. Torch-free."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vitlab.config.kinds import alternatives, show
from vitlab.errors import UserError
from vitlab.folder import TIMM
from vitlab.plan import duration_names, make_plan

# What is known of a data set before it has been looked at.
TRAIN_IMAGES = {"cifar10": 50_000, "cifar100": 50_000}
CLASSES = {"cifar10": 10, "cifar100": 100, "shapes": 10}
DEFAULT_HELD_OUT = 0.1  # what data.val_size=null stands for

Misfits = Iterator[tuple[str, str]]


class Reader:
    """Reads dotted keys; gives None for what is absent, or already known to be wrong."""

    def __init__(self, plain: Mapping[str, Any], bad: set[str]) -> None:
        self.plain, self._bad = plain, bad

    def __call__(self, key: str) -> Any:
        if key in self._bad:
            return None
        node: Any = self.plain
        for part in key.split("."):
            if not isinstance(node, Mapping) or part not in node:
                return None
            node = node[part]
        return node

    def sound(self, *groups: str) -> bool:
        """Whether nothing is known to be wrong in these groups."""
        return not any(key.partition(".")[0] in groups for key in self._bad)

    def is_null(self, key: str) -> bool:
        """Whether a key is there, and null."""
        node, _, name = key.rpartition(".")
        return name in (self(node) or {}) and self(key) is None and key not in self._bad


def misfits(plain: Mapping[str, Any], bad: set[str]) -> Misfits:
    """Yield (key, sentence) for values that do not fit each other; `bad` keys are left alone."""
    read = Reader(plain, bad)
    yield from _model(read)
    yield from _data(read)
    yield from _augment(read)
    yield from _model_and_data(read)
    yield from _duration(read)
    yield from _schedule(read)
    yield from _device(read)
    yield from _teacher(read)


def train_images(read: Reader) -> int | None:
    """Return the number of images trained on, or None where only the data can tell."""
    kind = read("data.kind")
    total = TRAIN_IMAGES.get(kind) if isinstance(kind, str) else None
    total = total or read("data.num_train")
    held_out = read("data.val_size")
    if total is None:
        return None
    if held_out is None:
        held_out = DEFAULT_HELD_OUT
    return total - (held_out if isinstance(held_out, int) else round(held_out * total))


def _two(value: Any) -> tuple[int, int]:
    return (value[0], value[1]) if isinstance(value, list) else (value, value)


def _is_distilled(read: Reader) -> bool:
    """Whether the model has a distillation token, and a head for it."""
    return str(read("model._target_")).endswith(".DistilledViT")


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


def _model(read: Reader) -> Misfits:
    patch, image = read("model.patch_size"), read("model.image_size")
    if patch is not None and image is not None:
        (height, width), (down, across) = _two(image), _two(patch)
        if height % down or width % across:
            common = [side for side in _divisors(height) if width % side == 0]
            yield (
                "model.patch_size",
                f"model.patch_size={show(patch)} does not divide the image of {height} x {width} "
                f"(model.image_size): choose {alternatives(common)}",
            )
    dim, heads = read("model.dim"), read("model.heads")
    if dim and heads and read("model.dim_head") is None and dim % heads:
        yield (
            "model.heads",
            f"model.heads={heads} does not divide model.dim={dim}: choose "
            f"{alternatives(_divisors(dim))}, or set model.dim_head",
        )
    ratio = read("model.mlp_ratio")
    if dim and ratio and int(dim * ratio) < 1:
        yield (
            "model.mlp_ratio",
            f"model.mlp_ratio={show(ratio)} of model.dim={dim} leaves the MLP no unit: choose "
            f"{1 / dim:g} or more",
        )
    if dim and dim % 4 and read("model.position") == "sincos":
        yield (
            "model.position",
            f"model.position=sincos needs a model.dim divisible by 4, found {dim}: choose "
            f"model.dim={dim + 4 - dim % 4} or model.position=learnable",
        )
    yield from _attention(read)
    if dim and read.is_null("model.drop_path"):
        yield (
            "model.drop_path",
            "model.drop_path=null: expected a number from 0 and below 1, found null; 0 is none",
        )
    if read("model.pretrained") and read("model.checkpoint_path"):
        yield (
            "model.checkpoint_path",
            "model.pretrained=true and model.checkpoint_path both give the weights: keep one, set "
            "model.pretrained=false or model.checkpoint_path=null",
        )
    elif (path := read("model.checkpoint_path")) and not Path(path).expanduser().exists():
        yield (
            "model.checkpoint_path",
            f"model.checkpoint_path={path}: there is no such file or folder (looked for "
            f"{Path(path).expanduser().absolute()})",
        )
    check = TOKENIZERS.get(str(read("model.tokenizer._target_")).rpartition(".")[2])
    if check and patch is not None:
        yield from check(read, patch)


def _attention(read: Reader) -> Misfits:
    """Check positions, first weights and attention against the sizes of heads and the number of tokens."""
    dim, heads, position = read("model.dim"), read("model.heads"), read("model.position")
    width = read("model.dim_head") or (dim and heads and dim // heads)
    if width and position == "rotary" and width % 4:
        yield (
            "model.position",
            "model.position=rotary turns pairs along two axes and needs heads of a width divisible by 4, "
            f"found {width} (model.dim_head, or model.dim / model.heads): set "
            f"model.dim_head={width + 4 - width % 4}",
        )
    if dim and width and read("model.init") == "mimetic":
        if dim % 4 and position == "learnable":
            yield (
                "model.init",
                "model.init=mimetic starts positions as sines and cosines and needs a model.dim divisible "
                f"by 4, found {dim}: choose model.dim={dim + 4 - dim % 4}",
            )
        if heads * width > dim:
            yield (
                "model.init",
                f"model.init=mimetic factors matrices of model.dim={dim} and cannot fill heads of "
                f"{heads} x {width} (model.heads x model.dim_head): set model.dim_head=null or "
                "model.init=xavier",
            )
    kind = str(read("model.attention._target_")).rpartition(".")[2]
    if kind == "LinformerAttention" and position == "rotary":
        yield (
            "model.position",
            "model/attention=linformer mixes keys of all places, so model.position=rotary cannot turn them "
            "by theirs: choose model.position=learnable or sincos, or model/attention=softmax",
        )
    patch, image = read("model.patch_size"), read("model.image_size")
    if patch is None or image is None:
        return
    (height, width), (down, across) = _two(image), _two(patch)
    tokens = (height // down) * (width // across) + (read("model.pool") == "cls") + _is_distilled(read)
    length = read("model.attention.projection_length")
    if length and 0 < tokens <= length:
        yield (
            "model.attention.projection_length",
            f"model.attention.projection_length={length} saves nothing over {tokens} tokens (of "
            f"model.image_size, patch_size and pool): choose less than {tokens}, or model/attention=softmax",
        )
    if kind == "LocalityAttention" and tokens == 1:
        yield (
            "model.patch_size",
            "model/attention=lsa hides each token from itself, and here there is one token: choose a smaller "
            "model.patch_size, or model.pool=cls",
        )


def _conv_stem(read: Reader, patch: Any) -> Misfits:
    dim, convs = read("model.dim"), read("model.tokenizer.num_convs")
    if dim is None or convs is None:
        return
    if any(side & (side - 1) for side in _two(patch)):
        yield (
            "model.patch_size",
            f"model.patch_size={show(patch)} is no power of two, and a convolutional stem can only "
            "halve the image: choose 1, 2, 4, 8 or 16",
        )
        return
    full_size = read("model.tokenizer.full_size_convs") or 0
    needed = max(side.bit_length() - 1 for side in _two(patch)) + full_size
    if needed > convs:
        yield (
            "model.tokenizer.num_convs",
            f"model.patch_size={show(patch)} needs {needed - full_size} halvings after {full_size} full-size "
            f"convolutions, and the stem has model.tokenizer.num_convs={convs}: set "
            f"model.tokenizer.num_convs={needed}",
        )
    elif dim % 2 ** (convs - 1):
        yield (
            "model.dim",
            f"model.dim={dim} cannot be halved {convs - 1} times, as the widths of "
            f"model.tokenizer.num_convs={convs} convolutions need: choose a multiple of "
            f"{2 ** (convs - 1)}",
        )


def _conv_pool(read: Reader, patch: Any) -> Misfits:
    layers = read("model.tokenizer.num_layers")
    if layers is not None and _two(patch) != (2**layers, 2**layers):
        fit = [n for n in range(1, 9) if _two(patch) == (2**n, 2**n)]
        yield (
            "model.patch_size",
            f"model.patch_size={show(patch)} is not what model.tokenizer.num_layers={layers} gives, as each "
            f"halves the image: set model.patch_size={2**layers}"
            + (f", or model.tokenizer.num_layers={fit[0]}" if fit else ""),
        )
    if read("model.patch_norm"):
        yield (
            "model.patch_norm",
            "model.patch_norm=true needs a projection to normalise around, and model/tokenizer=cct has none: "
            "set model.patch_norm=false",
        )


def _shifted_patches(read: Reader, patch: Any) -> Misfits:
    if min(_two(patch)) < 2:
        yield (
            "model.patch_size",
            f"model.patch_size={show(patch)} has no half to shift by, as model/tokenizer=spt does: choose 2 "
            "or more",
        )


TOKENIZERS = {"ConvStem": _conv_stem, "ConvPool": _conv_pool, "ShiftedPatches": _shifted_patches}


def _augment(read: Reader) -> Misfits:
    """Yield what the augmentations that are listed would refuse, so that a sweep learns it at once."""
    ops = read("augment.ops")
    for name in ops if isinstance(ops, list) else []:
        key = f"augment.{name}"
        node = read(key)
        if not isinstance(node, Mapping):
            continue
        value = {option: read(f"{key}.{option}") for option in node}
        if value.get("space") == "timm" and (value.get("magnitude") or 0) > 10:
            magnitude = show(value["magnitude"])
            yield (
                f"{key}.magnitude",
                f"{key}.magnitude={magnitude} is more than 10, full strength in {key}.space=timm: choose "
                "10 or less, or space=paper, where it is 30",
            )
        size, padding = read("data.image_size"), value.get("padding")
        if size is not None and padding and value.get("padding_mode") == "reflect":
            side = min(_two(size))
            if padding >= side:
                yield (
                    f"{key}.padding",
                    f"{key}.padding={padding} with padding_mode=reflect must be less than the image's side "
                    f"of {side}: choose {side - 1} or less, or padding_mode=zero",
                )
        for low in (option for option in value if option.startswith("min_")):
            high = low.replace("min_", "max_", 1)
            least, most = value[low], value.get(high)
            if least is not None and most is not None and least > most:
                yield f"{key}.{low}", f"{key}.{low}={show(least)} is more than {key}.{high}={show(most)}"
        if "mixup_alpha" in value and not (value["mixup_alpha"] or value["cutmix_alpha"]):
            yield (
                f"{key}.mixup_alpha",
                f"{key}.mixup_alpha and {key}.cutmix_alpha are both off: give one a number above 0, or leave "
                f"{name} out of augment.ops",
            )
        fill, channels = value.get("fill"), read("data.channels")
        if isinstance(fill, list) and channels and len(fill) not in (1, channels):
            yield (
                f"{key}.fill",
                f"{key}.fill={show(fill)} has {len(fill)} levels, and images have data.channels={channels}: "
                "give one level, or one a channel",
            )


def _data(read: Reader) -> Misfits:
    kind = read("data.kind")
    if kind in ("image_folder", "image_list") and read.is_null("data.root"):
        what = "FOLDER" if kind == "image_folder" else "FILE.csv"
        yield "data.root", f"data={kind} needs to know where the images are: add data.root={what}"
    known = TRAIN_IMAGES.get(kind) if isinstance(kind, str) else None
    total = known or read("data.num_train")
    held_out, batch = read("data.val_size"), read("data.batch_size")
    if total is not None and isinstance(held_out, int) and held_out >= total:
        yield (
            "data.val_size",
            f"data.val_size={held_out} leaves nothing of the {total:,} training images: choose a "
            "number below that, a fraction such as 0.1, or 0 for none",
        )
    else:
        images = train_images(read)
        if images is not None and batch is not None and batch > images:
            yield (
                "data.batch_size",
                f"data.batch_size={batch} is more than the {images:,} training images: choose "
                f"{images} or fewer",
            )
    if isinstance(kind, str) and kind in CLASSES:
        classes = read("data.num_classes")
        if classes is not None and classes != CLASSES[kind]:
            yield (
                "data.num_classes",
                f"data.num_classes={classes}, but {kind} has {CLASSES[kind]} classes: set "
                f"data.num_classes={CLASSES[kind]}",
            )
    channels, normalization = read("data.channels"), read("data.normalization")
    if isinstance(normalization, Mapping) and channels is not None:
        for name, values in normalization.items():
            if len(values) != channels:
                yield (
                    f"data.normalization.{name}",
                    f"data.normalization.{name} has {len(values)} values for data.channels="
                    f"{channels}: give one a channel",
                )


def _model_and_data(read: Reader) -> Misfits:
    for key, reason in (
        ("num_classes", "the head would not fit the labels"),
        ("channels", "the first layer would not fit the images"),
    ):
        ours, theirs = read(f"model.{key}"), read(f"data.{key}")
        if ours is not None and theirs is not None and ours != theirs:
            yield (
                f"model.{key}",
                f"model.{key}={ours}, but data.{key}={theirs}: {reason}. Leave model.{key} out, it "
                "follows the data",
            )


def _duration(read: Reader) -> Misfits:
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


def _schedule(read: Reader) -> Misfits:
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


def _device(read: Reader) -> Misfits:
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


def _teacher(read: Reader) -> Misfits:
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
    if weight in (0, 1) and _is_distilled(read):
        yield (
            "task.weight",
            f"task.weight={show(weight)} leaves {'the labels' if weight else 'the teacher'} out, and one of "
            "this model's two heads would learn nothing: choose a number between, such as 0.5, or another "
            "model",
        )
