"""What was probably meant by a word that does not exist."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


def nearest(word: str, choices: Iterable[str], cutoff: float = 0.6) -> list[str]:
    """Return the closest of ``choices`` alone in a list, or an empty list where none is close."""
    choices = list(choices)
    same = [choice for choice in choices if choice.lower() == word.lower()]
    return same[:1] or get_close_matches(word, choices, n=1, cutoff=cutoff)


def join_or(words: Sequence[str]) -> str:
    """Return ``"a, b or c"``."""
    return " or ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def did_you_mean(matches: Sequence[str]) -> str:
    """Return ``" did you mean a or b?"`` for the first few of ``matches``, or nothing for none."""
    return f" did you mean {join_or(matches[:3])}?" if matches else ""


def suggest(word: str, choices: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the closest of ``choices``, or nothing."""
    return "".join(f" (did you mean '{match}'?)" for match in nearest(word, choices))
