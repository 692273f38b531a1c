"""The one exception that people see: a plain sentence instead of a traceback."""


class UserError(Exception):
    """A mistake that the person at the keyboard can mend.

    Its message says what was expected, what was found and what to do; the verbs print it alone, without a
    traceback, and exit with status 1.
    """
