"""What is known of the data sets before they are looked at, and which images are held out by default."""

NUM_TRAIN = {"cifar10": 50_000, "cifar100": 50_000}
NUM_CLASSES = {"cifar10": 10, "cifar100": 100, "shapes": 10}
KINDS = ("cifar10", "cifar100", "image_folder", "image_list", "shapes")

# Where the data has no such part and the config gives no size.
DEFAULT_VAL_SIZE = 0.1
DEFAULT_TEST_SIZE = 0.2


def num_held_out(size: int | float, total: int) -> int:
    """Return how many of ``total`` images ``size`` asks for: a count, or a fraction below 1."""
    return size if isinstance(size, int) else round(size * total)
