"""What is known of the data sets before they are looked at, and which images are held out by default."""

from dataclasses import dataclass

NUM_TRAIN = {"cifar10": 50_000, "cifar100": 50_000, "fashion_mnist": 60_000}
NUM_CLASSES = {"cifar10": 10, "cifar100": 100, "fashion_mnist": 10, "shapes": 10}
KINDS = ("cifar10", "cifar100", "fashion_mnist", "image_folder", "image_list", "shapes")

# Where the data has no such part and the config gives no size.
DEFAULT_VAL_SIZE = 0.1
DEFAULT_TEST_SIZE = 0.2


def num_held_out(size: int | float, total: int) -> int:
    """Return how many of ``total`` images ``size`` asks for: a count, or a fraction below 1."""
    return size if isinstance(size, int) else round(size * total)


@dataclass(frozen=True)
class DatasetInfo:
    """What a config is checked against, without any image."""

    name: str  # for titles
    classes: tuple[str, ...]  # names, in the order of the labels
    num_train: int  # images to train on
    num_val: int  # held out, or in the data set's own validation part; 0 for none
    num_test: int
