"""Cross-checks: values that are right alone and wrong together, with what to write instead."""

from collections.abc import Iterator, Mapping
from typing import Any

from vitlab.config.cross_checks.config_reader import ConfigReader
from vitlab.config.cross_checks.data import data_conflicts
from vitlab.config.cross_checks.model import model_conflicts
from vitlab.config.cross_checks.search import search_conflicts
from vitlab.config.cross_checks.training import training_conflicts
from vitlab.config.types import show


def find_conflicts(plain: Mapping[str, Any], bad: set[str]) -> Iterator[tuple[str, str]]:
    """Yield (key, sentence) for values that do not fit each other.

    Args:
        plain: the resolved config.
        bad: keys already known to be wrong, which are left alone.
    """
    read = ConfigReader(plain, bad)
    for check in (model_conflicts, data_conflicts, training_conflicts, search_conflicts):
        for key, words in check(read):
            value = read(key)
            if isinstance(value, Mapping):  # about a whole group, and a sentence of its own
                yield key, words
            else:
                yield key, f"{key}={show(value)}{'' if words.startswith((',', ':')) else ' '}{words}"
