"""What a command line is answered with, for the tests of the config."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vitlab.config import combinations, keys, report
from vitlab.core.errors import UserError

Check = Callable[[dict[str, Any]], dict[str, str]]  # the fixture `problems_with`


def refused(*overrides: str, multirun: bool = False) -> str:
    with pytest.raises(UserError) as caught:
        combinations(overrides, multirun)
    return str(caught.value)


def partly(*overrides: str) -> str:
    """Return what is said of the combinations that cannot run in a sweep of which others can."""
    return report(combinations(overrides, True), "are skipped")


def changed(plain: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    plain = copy.deepcopy(plain)
    for key, value in values.items():
        node, _, last = key.rpartition(".")
        (keys.get(plain, node) if node else plain)[last] = value
    return plain


def recipe(conf: Path, name: str, text: str) -> None:
    (conf / "experiment" / f"{name}.yaml").write_text(f"# @package _global_\n{text}\n")
