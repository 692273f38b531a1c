"""The one exception that people see: a plain sentence instead of a traceback. Torch-free."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """A mistake that the person at the keyboard can mend.

    Its message says what was expected, what was found and what to do; the verbs print it alone, without a
    traceback, and exit with status 1.
    """


def nearest(word: str, choices: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the closest of ``choices``, or an empty string."""
    close = get_close_matches(word, list(choices), n=1, cutoff=0.6)
    return f" (did you mean '{close[0]}'?)" if close else ""
