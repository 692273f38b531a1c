"""The one exception that people see: a plain sentence instead of a traceback."""


class UserError(Exception):
    """A mistake that the person at the keyboard can mend.

    Its message says what was expected, what was found and what to do; the verbs print it alone, without a
    traceback, and exit with status 1.
    """


class Diverged(UserError):  # noqa: N818  (named as the field says it)
    """Training diverged: at optimizer step ``step`` its loss or weights were no longer finite."""

    # Pickle calls it with the message alone, and fills in the step later.
    def __init__(self, message: str, step: int = 0) -> None:
        super().__init__(message)
        self.step = step
