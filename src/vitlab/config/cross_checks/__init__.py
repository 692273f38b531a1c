"""Cross-checks: values that are right alone and wrong together, with what to write instead."""

from collections.abc import Mapping
from typing import Any

from vitlab.config.cross_checks.data import data_conflicts
from vitlab.config.cross_checks.model import model_conflicts
from vitlab.config.cross_checks.reader import Conflicts, Reader
from vitlab.config.cross_checks.training import training_conflicts


def find_conflicts(plain: Mapping[str, Any], bad: set[str]) -> Conflicts:
    """Yield (key, sentence) for values that do not fit each other.

    Args:
        plain: the resolved config.
        bad: keys already known to be wrong, which are left alone.
    """
    read = Reader(plain, bad)
    yield from model_conflicts(read)
    yield from data_conflicts(read)
    yield from training_conflicts(read)
