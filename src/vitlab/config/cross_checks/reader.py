"""How the cross-checks read a config."""

from collections.abc import Iterator, Mapping
from typing import Any

from vitlab.config import keys

Conflicts = Iterator[tuple[str, str]]  # key, and the sentence about it


class Reader:
    """Reads dotted keys; gives None for what is absent, or already known to be wrong."""

    def __init__(self, plain: Mapping[str, Any], bad: set[str]) -> None:
        self.plain, self._bad = plain, bad

    def __call__(self, key: str) -> Any:
        return None if key in self._bad else keys.get(self.plain, key)

    def sound(self, *groups: str) -> bool:
        """Whether nothing is known to be wrong in these groups."""
        return not any(key.partition(".")[0] in groups for key in self._bad)

    def is_null(self, key: str) -> bool:
        """Whether a key is there, and null."""
        node, _, name = key.rpartition(".")
        return name in (self(node) or {}) and self(key) is None and key not in self._bad


def two(value: Any) -> tuple[int, int]:
    """Return (height, width) of a size that may be one number."""
    return (value[0], value[1]) if isinstance(value, list) else (value, value)
