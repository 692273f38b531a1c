"""Which code a config may name: ours by the list, found in the source without importing it.

A prefix alone is no fence: ``vitlab.models.vit.torch.hub.load`` begins like ours. So what is named
must be defined in the module that it is named in, or be one of torch's optimizers.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from vitlab.config import keys
from vitlab.config.types import alternatives, show
from vitlab.core.errors import UserError
from vitlab.core.suggest import did_you_mean, nearest

ALLOWED_TARGETS = (
    "vitlab.models.",
    "vitlab.data.",
    "vitlab.augment.",
    "vitlab.optim.",
    "vitlab.tasks.",
    "vitlab.training.callbacks.",
    "torch.optim.",
)
_PACKAGE = Path(__file__).parents[1]
_OPTIMIZER = re.compile(r"torch\.optim\.[A-Z]\w*")


def bad_targets(node: Any) -> Iterator[tuple[str, str]]:
    """Yield (key, sentence) for every ``_target_`` below that may not, or cannot, be built."""
    for key, value in keys.leaves(node):
        if "_target_" in key.split(".") and (objection := _objection(value)):
            yield key, f"{key}={show(value)}: {objection}"


def check_targets(node: Any) -> None:
    """Check which code a config or a part of it names: whoever made a checkpoint must not choose what runs.

    Raises:
        UserError: a ``_target_`` names other code.
    """
    if problems := [sentence for _, sentence in bad_targets(node)]:
        raise UserError("\n".join(problems))


def _objection(target: Any) -> str | None:
    if not isinstance(target, str) or not target.startswith(ALLOWED_TARGETS):
        return f"a config may only name code that starts with {alternatives(ALLOWED_TARGETS)}"
    if target.startswith("torch."):
        return None if _OPTIMIZER.fullmatch(target) else "of torch, only torch.optim.<Optimizer>"
    path, module, parts = _PACKAGE, "vitlab", target.split(".")[1:]
    while parts and (path / parts[0]).is_dir():
        path, module = path / parts[0], f"{module}.{parts.pop(0)}"
    if len(parts) > 1 and (path / f"{parts[0]}.py").is_file():
        path, module = path / f"{parts[0]}.py", f"{module}.{parts.pop(0)}"
    try:
        names = _defined(path / "__init__.py" if path.is_dir() else path)
    except SyntaxError as error:
        return f"{module} is no Python, see its line {error.lineno}"
    if len(parts) == 1 and parts[0] in names:
        return None
    hint = did_you_mean([f"{module}.{match}" for part in parts[:1] for match in nearest(part, names)])
    return f"{module} does not define {'.'.join(parts) or 'it'};{hint}".rstrip(";")


@cache
def _defined(file: Path) -> frozenset[str]:
    """Return a file's public functions and classes; for a package, what it takes from ours."""
    if not file.is_file():
        return frozenset()
    names: list[str] = []
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.append(node.name)
        elif isinstance(node, ast.ImportFrom) and file.name == "__init__.py":
            ours = node.level > 0 or (node.module or "").startswith("vitlab.")
            names += [alias.asname or alias.name for alias in node.names if ours]
    return frozenset(name for name in names if not name.startswith("_"))
