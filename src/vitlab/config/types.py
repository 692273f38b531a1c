"""What a value may be: a test and the words for it, so that a rule and its message always agree."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from vitlab.core.suggest import join_or


@dataclass(frozen=True)
class Kind:
    """A set of allowed values.

    Attributes:
        says: the words after "expected", such as ``"a whole number from 1 to 512"``.
        accepts: true for an allowed value.
    """

    says: str
    accepts: Callable[[Any], bool]


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def whole(low: int, high: int) -> Kind:
    """Return the integers of [low, high]; a float is refused even where it has no fraction."""
    return Kind(f"a whole number from {low} to {high}", lambda value: _whole(value) and low <= value <= high)


def real(low: float, high: float, *, above: bool = False, below: bool = False) -> Kind:
    """Return the numbers of [low, high], without `low` if above, without `high` if below."""

    def accepts(value: Any) -> bool:
        return (
            _number(value)
            and (value > low if above else value >= low)
            and (value < high if below else value <= high)
        )

    start = f"above {low:g}" if above else f"from {low:g}"
    end = f"and below {high:g}" if below else f"and at most {high:g}" if above else f"to {high:g}"
    return Kind(f"a number {start} {end}", accepts)


def word(*choices: str) -> Kind:
    """Return one of the given words."""
    return Kind(" or ".join(choices), lambda value: isinstance(value, str) and value in choices)


def exactly(*values: int) -> Kind:
    """Return the given whole numbers."""
    return Kind(" or ".join(map(str, values)), lambda value: _whole(value) and value in values)


def text() -> Kind:
    """Return any non-empty text."""
    return Kind("text", lambda value: isinstance(value, str) and bool(value.strip()))


def spelled(pattern: str, says: str) -> Kind:
    """Return the texts that match a regular expression as a whole."""
    return Kind(says, lambda value: isinstance(value, str) and bool(re.fullmatch(pattern, value)))


def flag() -> Kind:
    """Return true and false."""
    return Kind("true or false", lambda value: isinstance(value, bool))


def null() -> Kind:
    """Return null alone: for rules where it has a meaning."""
    return Kind("null", lambda value: value is None)


def pair(kind: Kind) -> Kind:
    """Return lists of two, such as [height, width]."""
    return Kind(
        f"a list of two, each {kind.says}",
        lambda value: isinstance(value, list) and len(value) == 2 and all(map(kind.accepts, value)),
    )


def listing(kind: Kind, least: int = 1) -> Kind:
    """Return lists of at least so many."""
    return Kind(
        f"a list{' of at least one' if least else ''}, each {kind.says}",
        lambda value: isinstance(value, list) and len(value) >= least and all(map(kind.accepts, value)),
    )


def mapping(**kinds: Kind) -> Kind:
    """Return mappings with exactly these keys."""
    says = ", ".join(f"{key}: {kind.says}" for key, kind in kinds.items())

    def accepts(value: Any) -> bool:
        return (
            isinstance(value, dict)
            and set(value) == set(kinds)
            and all(kind.accepts(value[key]) for key, kind in kinds.items())
        )

    return Kind(f"{{{says}}}", accepts)


def matching(says: str, accepts: Callable[[Any], bool]) -> Kind:
    """Return what `accepts` accepts, said in its own words."""
    return Kind(says, accepts)


def either(*kinds: Kind) -> Kind:
    """Return the union of several kinds."""
    return Kind(
        ", or ".join(kind.says for kind in kinds),
        lambda value: any(kind.accepts(value) for kind in kinds),
    )


def like(value: Any) -> Kind | None:
    """Return the kind of a YAML file's own value, or None where it tells nothing."""
    if isinstance(value, bool):
        return flag()
    if isinstance(value, int):
        return Kind("a whole number", _whole)
    if isinstance(value, float):
        return Kind("a number", _number)
    if isinstance(value, str):
        # A reference or a value still to be given says nothing of its kind.
        return None if value == "???" or "${" in value else text()
    if isinstance(value, list) and value:
        element = like(value[0])
        if element is not None:
            return Kind(
                f"a list, each {element.says}",
                lambda found: isinstance(found, list) and all(map(element.accepts, found)),
            )
    return None


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
    """Return a value with its kind in words, for the part of a message after "found"."""
    if isinstance(value, str):
        return f"the text '{value}'"
    kind = "the list " if isinstance(value, list) else "the mapping " if isinstance(value, dict) else ""
    return f"{kind}{show(value)}"


def alternatives(values: Iterable[Any], limit: int = 12) -> str:
    """Return ``"1, 2, 4 or 8"``, cut after `limit`."""
    words = [show(value) for value in values]
    if len(words) > limit:
        return ", ".join(words[:limit]) + " …"
    return join_or(words)
