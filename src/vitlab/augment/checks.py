"""What the constructors of augmentations refuse, in one sentence each."""

import math
from collections.abc import Sequence
from typing import Any

from vitlab.core.errors import UserError
from vitlab.core.suggest import suggest


def check_number(owner: object, name: str, value: Any, low: float, high: float = math.inf) -> None:
    """Refuse what is not a number of [low, high].

    Raises:
        UserError: it names the class of ``owner`` and the option.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        span = f"from {low:g}" + ("" if math.isinf(high) else f" to {high:g}")
        raise UserError(f"{name} of {type(owner).__name__} must be a number {span}, but is {value!r}.")


def check_whole(owner: object, name: str, value: Any, low: int) -> None:
    """Refuse what is not a whole number from ``low`` on.

    Raises:
        UserError: it names the class of ``owner`` and the option.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise UserError(
            f"{name} of {type(owner).__name__} must be a whole number from {low}, but is {value!r}."
        )


def check_range(owner: object, name: str, least: Any, most: Any, low: float, high: float = math.inf) -> None:
    """Refuse what is not a range of numbers above ``low`` and up to ``high``: min_``name``, max_``name``.

    Raises:
        UserError: it names the class of ``owner`` and the option.
    """
    check_number(owner, f"min_{name}", least, low, high)
    check_number(owner, f"max_{name}", most, low, high)
    if least > most:
        raise UserError(
            f"min_{name}={least!r} of {type(owner).__name__} is more than max_{name}={most!r}. Lower the "
            "one or raise the other."
        )


def check_word(owner: object, name: str, value: Any, words: Sequence[str]) -> None:
    """Refuse what is none of the words.

    Raises:
        UserError: it names the class of ``owner``, the words, and the nearest of them.
    """
    if value not in words:
        raise UserError(
            f"{name} of {type(owner).__name__} must be one of {', '.join(words)}, but is "
            f"{value!r}{suggest(str(value), words)}."
        )
