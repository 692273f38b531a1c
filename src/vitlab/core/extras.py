"""Packages that only some commands need: the extras of pyproject.toml."""

import importlib.util

from vitlab.core.errors import UserError


def need(*modules: str, extra: str, what: str) -> None:
    """Check that packages are there, without importing them.

    Args:
        modules: their top-level names.
        extra: that installs them.
        what: needs them, for the message, such as ``"export.py --format onnx"``.

    Raises:
        UserError: one is not installed.
    """
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise UserError(
            f"{what} needs {' and '.join(missing)}, which {verb} not installed: "
            f".venv/bin/pip install -e '.[{extra}]'"
        )
