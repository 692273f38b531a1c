"""What a value may be: a test and the words for it, so that a rule and its message always agree."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from vitlab.core.suggest import join_or


@dataclass(frozen=True)
class Constraint:
    """A set of allowed values.

    Attributes:
        says: the words after "expected", such as ``"a whole number from 1 to 512"``.
        accepts: true for an allowed value.
    """

    says: str
    accepts: Callable[[Any], bool]


# Of the exact type: true and false are integers in Python, and not here.
INTEGER = Constraint("a whole number", lambda value: type(value) is int)
NUMBER = Constraint("a number", lambda value: type(value) in (int, float))
TEXT = Constraint("text", lambda value: isinstance(value, str) and bool(value.strip()))
FLAG = Constraint("true or false", lambda value: isinstance(value, bool))
NULL = Constraint("null", lambda value: value is None)


def whole(low: int, high: int) -> Constraint:
    """Return the integers of [low, high]; a float is refused even where it has no fraction."""
    return Constraint(
        f"a whole number from {low} to {high}", lambda value: INTEGER.accepts(value) and low <= value <= high
    )


def real(low: float, high: float, *, above: bool = False, below: bool = False) -> Constraint:
    """Return the numbers of [low, high], without `low` if above, without `high` if below."""

    def accepts(value: Any) -> bool:
        excluded = (above and value == low) or (below and value == high)
        return NUMBER.accepts(value) and low <= value <= high and not excluded

    start = f"above {low:g}" if above else f"from {low:g}"
    end = f"and below {high:g}" if below else f"and at most {high:g}" if above else f"to {high:g}"
    return Constraint(f"a number {start} {end}", accepts)


def one_of(*choices: str | int) -> Constraint:
    """Return the given words and whole numbers."""
    return Constraint(
        " or ".join(map(str, choices)), lambda value: type(value) in (str, int) and value in choices
    )


def spelled(pattern: str, says: str) -> Constraint:
    """Return the texts that match a regular expression as a whole."""
    return Constraint(says, lambda value: isinstance(value, str) and bool(re.fullmatch(pattern, value)))


def pair(item: Constraint) -> Constraint:
    """Return lists of two, such as [height, width]."""
    return Constraint(
        f"a list of two, each {item.says}",
        lambda value: isinstance(value, list) and len(value) == 2 and all(map(item.accepts, value)),
    )


def listing(item: Constraint, least: int = 1) -> Constraint:
    """Return lists of at least so many."""
    return Constraint(
        f"a list{' of at least one' if least else ''}, each {item.says}",
        lambda value: isinstance(value, list) and len(value) >= least and all(map(item.accepts, value)),
    )


def mapping(**items: Constraint) -> Constraint:
    """Return mappings with exactly these keys."""
    return Constraint(
        f"{{{', '.join(f'{key}: {item.says}' for key, item in items.items())}}}",
        lambda value: (
            isinstance(value, dict)
            and value.keys() == items.keys()
            and all(item.accepts(value[key]) for key, item in items.items())
        ),
    )


def either(*constraints: Constraint) -> Constraint:
    """Return the union of several."""
    return Constraint(
        ", or ".join(one.says for one in constraints),
        lambda value: any(one.accepts(value) for one in constraints),
    )


def like(value: Any) -> Constraint | None:
    """Return what a YAML file's own value tells of the values in its place, or None where that is nothing."""
    if isinstance(value, str):  # a reference or a value still to be given says nothing of its type
        return None if value == "???" or "${" in value else TEXT
    if isinstance(value, list) and value:
        item = like(value[0])
        return item and listing(item, least=0)
    return next((one for one in (FLAG, INTEGER, NUMBER) if one.accepts(value)), None)


def show(value: Any) -> str:
    """Return a value as it is written in YAML."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(show, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {show(item)}' for key, item in value.items())}}}"
    return str(value)


def found(value: Any) -> str:
    """Return a value with its type in words, for the part of a message after "found"."""
    if isinstance(value, str):
        return f"the text '{value}'"
    kind = "the list " if isinstance(value, list) else "the mapping " if isinstance(value, dict) else ""
    return f"{kind}{show(value)}"


def alternatives(values: Iterable[Any]) -> str:
    """Return ``"1, 2, 4 or 8"``, cut after twelve."""
    words = [show(value) for value in values]
    return join_or(words) if len(words) <= 12 else ", ".join(words[:12]) + " …"
