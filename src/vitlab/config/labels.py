"""How runs that differ are told apart in a few words: ``patch_size=2 depth=4``."""

from collections import Counter
from collections.abc import Iterable

HYDRA = ("hydra.", "hydra/")  # what Hydra's own overrides start with


def own_overrides(overrides: Iterable[str]) -> list[str]:
    """Return the overrides that say what is trained: without Hydra's and those of the sweep itself."""
    return [o for o in overrides if not o.startswith((*HYDRA, "sweep.", "sweep="))]


def shorten_keys(keys: Iterable[str]) -> dict[str, str]:
    """Return how each key is shown: ``model.patch_size`` → ``patch_size``, without its group.

    The group stays where two keys would look alike, and where the rest says too little.
    """
    dotted = {key: key.replace("/", ".") for key in keys}
    inner = {key: whole.partition(".")[2] or whole for key, whole in dotted.items()}
    vague = {"seed", "_target_"}  # `seed` alone is the run's
    vague |= {text for text, times in Counter(inner.values()).items() if times > 1}
    return {key: dotted[key] if text in vague else text for key, text in inner.items()}


def label(overrides: Iterable[str], swept: Iterable[str]) -> str:
    """Return what sets a job apart, such as ``"patch_size=2 depth=4"``.

    Args:
        overrides: all of the job's.
        swept: the keys that were swept.
    """
    short = shorten_keys(swept)
    pairs = (override.lstrip("+").partition("=") for override in overrides)
    return " ".join(f"{short[key]}={value}" for key, _, value in pairs if key in short)
