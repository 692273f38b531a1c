"""What does not fit in the data, its augmentation, and between them and the model."""

from collections.abc import Mapping

from vitlab.config.cross_checks.reader import Conflicts, Reader, two
from vitlab.config.types import show
from vitlab.core.data_protocol import DEFAULT_VAL_SIZE, NUM_CLASSES, NUM_TRAIN, num_held_out


def data_conflicts(read: Reader) -> Conflicts:
    """Yield (key, sentence) for what does not fit in the data and its augmentation."""
    yield from _data(read)
    yield from _augment(read)
    yield from _model_and_data(read)


def train_images(read: Reader) -> int | None:
    """Return the number of images trained on, or None where only the data can tell."""
    total, size = _total(read), read("data.val_size")
    if total is None:
        return None
    return total - num_held_out(DEFAULT_VAL_SIZE if size is None else size, total)


def _total(read: Reader) -> int | None:
    """Return the number of training images before any are held out, where it is known."""
    return NUM_TRAIN.get(read("data.kind")) or read("data.num_train")


def _data(read: Reader) -> Conflicts:
    kind = read("data.kind")
    if kind not in (None, "shapes") and read.is_null("data.root"):
        what = "FILE.csv" if kind == "image_list" else "FOLDER"
        yield "data.root", f"data={kind} needs to know where the images are: add data.root={what}"
    total, held_out, batch = _total(read), read("data.val_size"), read("data.batch_size")
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
    known, classes = NUM_CLASSES.get(kind), read("data.num_classes")
    if known and classes not in (None, known):
        yield (
            "data.num_classes",
            f"data.num_classes={classes}, but {kind} has {known} classes: set data.num_classes={known}",
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


def _augment(read: Reader) -> Conflicts:
    """Yield what does not fit in the augmentations that are listed in ``augment.ops``."""
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
            side = min(two(size))
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


def _model_and_data(read: Reader) -> Conflicts:
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
