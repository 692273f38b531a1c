"""The one exception that people see: a plain sentence instead of a traceback."""


class UserError(Exception):
    """A mistake that the person at the keyboard can mend.

    Its message says what was expected, what was found and what to do; the verbs print it alone, without a
    traceback, and exit with status 1.
    """


class Diverged(UserError):  # noqa: N818  (named as the field says it)
    """Training diverged: a loss or a weight is no longer finite."""
