"""Dotted keys of nested mappings, such as ``model.patch_size``."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any


def join(parent: str, part: Any) -> str:
    """Return the dotted key of ``part`` inside ``parent``, which is empty at the top."""
    return f"{parent}.{part}" if parent else str(part)


def get(node: Any, key: str, default: Any = None) -> Any:
    """Return the value at a dotted key, or ``default`` where there is none."""
    for part in key.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return default
        node = node[part]
    return node


def has(node: Any, key: str) -> bool:
    """Say whether a dotted key is there, whatever its value."""
    missing = object()
    return get(node, key, missing) is not missing


def walk(node: Mapping[Any, Any], at: str = "") -> Iterator[str]:
    """Yield every dotted key, that of a node before those inside it."""
    for part, value in node.items():
        key = join(at, part)
        yield key
        if isinstance(value, Mapping):
            yield from walk(value, key)


def leaves(value: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, scalar) for everything in a value, the items of lists under their places."""
    if isinstance(value, Mapping | list | tuple):
        for part, item in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from leaves(item, join(at, part))
    else:
        yield at, value


def under(key: str, prefixes: Iterable[str]) -> bool:
    """Say whether ``key`` is one of ``prefixes`` or a key inside one of them."""
    return any(key == prefix or key.startswith(f"{prefix}.") for prefix in prefixes)
