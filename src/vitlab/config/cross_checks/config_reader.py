"""How the cross-checks read a config."""

from collections.abc import Iterator, Mapping
from typing import Any

from vitlab.config import keys

# A key, and what is wrong with its value: the words that follow ``key=value``.
Conflicts = Iterator[tuple[str, str]]


class ConfigReader:
    """Reads dotted keys; gives None for what is absent, or already known to be wrong."""

    def __init__(self, plain: Mapping[str, Any], bad: set[str]) -> None:
        self.plain, self._bad = plain, bad

    def __call__(self, key: str) -> Any:
        return None if key in self._bad else keys.get(self.plain, key)

    def sound(self, *groups: str) -> bool:
        """Whether nothing is known to be wrong in these groups."""
        return not any(keys.under(key, groups) for key in self._bad)

    def is_null(self, key: str) -> bool:
        """Whether a key is there, and null."""
        return key not in self._bad and keys.get(self.plain, key, "absent") is None

    def class_name(self, node: str) -> str:
        """Return the name of the class or function that a node builds, or "" where it names none."""
        return str(self(f"{node}._target_") or "").rpartition(".")[2]


def two(value: Any) -> tuple[int, int]:
    """Return (height, width) of a size that may be one number."""
    return (value[0], value[1]) if isinstance(value, list) else (value, value)
