"""Cross-checks: values that are right alone and wrong together, with what to write instead."""

from collections.abc import Mapping
from typing import Any

from vitlab.config.cross_checks.data import data_misfits
from vitlab.config.cross_checks.model import model_misfits
from vitlab.config.cross_checks.reader import Misfits, Reader
from vitlab.config.cross_checks.training import training_misfits


def misfits(plain: Mapping[str, Any], bad: set[str]) -> Misfits:
    """Yield (key, sentence) for values that do not fit each other.

    Args:
        plain: the resolved config.
        bad: keys already known to be wrong, which are left alone.
    """
    read = Reader(plain, bad)
    yield from model_misfits(read)
    yield from data_misfits(read)
    yield from training_misfits(read)
