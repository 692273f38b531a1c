"""What does not fit in the data, its augmentation, and between them and the model."""

from collections.abc import Mapping
from typing import Any

from vitlab.config.cross_checks.config_reader import ConfigReader, Conflicts, two
from vitlab.config.types import show
from vitlab.core.data_protocol import DEFAULT_VAL_SIZE, NUM_CLASSES, NUM_TRAIN, num_held_out


def data_conflicts(read: ConfigReader) -> Conflicts:
    """Yield what does not fit in the data, its augmentation, and between the data and the model."""
    yield from _data(read)
    ops = read("augment.ops")
    for name in ops if isinstance(ops, list) else []:
        key = f"augment.{name}"
        if isinstance(node := read(key), Mapping):
            yield from _augmentation(read, key, {option: read(f"{key}.{option}") for option in node})
    for key, reason in (
        ("num_classes", "the head would not fit the labels"),
        ("channels", "the first layer would not fit the images"),
    ):
        ours, theirs = read(f"model.{key}"), read(f"data.{key}")
        if None not in (ours, theirs) and ours != theirs:
            yield f"model.{key}", f", but data.{key}={theirs}: {reason}. Leave it out, it follows the data"


def train_images(read: ConfigReader) -> int | None:
    """Return the number of images trained on, or None where only the data can tell."""
    total, size = _total(read), read("data.val_size")
    if total is None:
        return None
    return total - num_held_out(DEFAULT_VAL_SIZE if size is None else size, total)


def _total(read: ConfigReader) -> int | None:
    """Return the number of training images before any are held out, where it is known."""
    return NUM_TRAIN.get(read("data.kind")) or read("data.num_train")


def _data(read: ConfigReader) -> Conflicts:
    kind = read("data.kind")
    if kind not in (None, "shapes") and read.is_null("data.root"):
        root = "FILE.csv" if kind == "image_list" else "FOLDER"
        yield "data.root", f", but data={kind} needs to know where the images are: add data.root={root}"
    total, held_out, batch = _total(read), read("data.val_size"), read("data.batch_size")
    images = train_images(read)
    if total is not None and isinstance(held_out, int) and held_out >= total:
        yield (
            "data.val_size",
            f"leaves none of the {total:,} training images: choose less, a fraction or 0",
        )
    elif images is not None and batch is not None and batch > images:
        yield "data.batch_size", f"is more than the {images:,} training images: choose {images} or fewer"
    known = NUM_CLASSES.get(kind)
    if known and read("data.num_classes") not in (None, known):
        yield "data.num_classes", f", but {kind} has {known} classes: set data.num_classes={known}"
    channels, normalization = read("data.channels"), read("data.normalization")
    if isinstance(normalization, Mapping) and channels is not None:
        for name, values in normalization.items():
            if len(values) != channels:
                yield f"data.normalization.{name}", f"needs one number a channel: data.channels={channels}"


def _augmentation(read: ConfigReader, key: str, value: dict[str, Any]) -> Conflicts:
    """Yield what does not fit in one of the augmentations that are listed in ``augment.ops``.

    Args:
        key: of the augmentation.
        value: its options.
    """
    if value.get("space") == "timm" and (value.get("magnitude") or 0) > 10:
        yield (
            f"{key}.magnitude",
            f"is more than 10, full strength in {key}.space=timm: choose 10 or less, or space=paper, where "
            "it is 30",
        )
    size, padding = read("data.image_size"), value.get("padding")
    if size is not None and padding and value.get("padding_mode") == "reflect":
        side = min(two(size))
        if padding >= side:
            yield (
                f"{key}.padding",
                f"with padding_mode=reflect must be less than the image's side of {side}: choose "
                f"{side - 1} or less, or padding_mode=zero",
            )
    for low in (option for option in value if option.startswith("min_")):
        high = low.replace("min_", "max_", 1)
        least, most = value[low], value.get(high)
        if None not in (least, most) and least > most:
            yield f"{key}.{low}", f"is more than {key}.{high}={show(most)}"
    if "mixup_alpha" in value and not (value["mixup_alpha"] or value["cutmix_alpha"]):
        yield (
            f"{key}.mixup_alpha",
            f"and {key}.cutmix_alpha={show(value['cutmix_alpha'])} are both off: give one a number above 0, "
            f"or leave {key.removeprefix('augment.')} out of augment.ops",
        )
    fill, channels = value.get("fill"), read("data.channels")
    if isinstance(fill, list) and channels and len(fill) not in (1, channels):
        yield (
            f"{key}.fill",
            f"has {len(fill)} levels for data.channels={channels}: give one, or one a channel",
        )
