"""Files that somebody else may have written: read within bounds, and held against the types they should have.

A run folder is handed from person to person. Whatever stands in one, reading it takes memory in proportion to
its size, runs nothing, and ends in a value of plain types or in a ValueError that says what is wrong.
"""

import itertools
import json
import math
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints, is_typeddict

import yaml

LARGEST = 64 * 2**20  # bytes of a file that is read whole
LARGEST_YAML = 2**20  # whose objects are a hundred times as large
DEEPEST = 50  # lists and mappings within each other
MOST = 1_000_000  # entries at one depth
TOO_MUCH = "it is nested too deeply, refers to itself or is too large"
# libyaml is seven times as fast, and almost every installation of PyYAML has it.
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_whole(path: Path, largest: int = LARGEST) -> bytes:
    """Return what is in a file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is larger than ``largest`` bytes, or a device or a pipe, which may have no end.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise ValueError("it is not a file")
    with open(path, "rb") as file:
        content = file.read(largest + 1)
    if len(content) > largest:
        raise ValueError(f"it is larger than {largest // 2**20} MiB")
    return content


def read_json(path: Path) -> Any:
    """Return what is in a JSON file. Raises as `read_whole` does, a ValueError also where it is no JSON."""
    try:
        content = json.loads(read_whole(path))
    except RecursionError:
        raise ValueError(TOO_MUCH) from None
    check_extent(content)
    return content


def read_yaml(path: Path) -> Any:
    """Return what is in a YAML file. Raises as `read_whole` does, a ValueError also where it is no YAML.

    Anchors are refused: a few lines of them can stand for more than any memory holds.
    """
    content, depth = read_whole(path, LARGEST_YAML), 0
    try:
        # Of events, which come one by one: libyaml's loader overflows the stack where they are nested deeply.
        for number, event in enumerate(yaml.parse(content, LOADER)):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent):
                raise ValueError(
                    f"line {event.start_mark.line + 1} refers to an anchor: write out what it names"
                )
            if depth > DEEPEST or number > MOST:
                raise ValueError(TOO_MUCH)
        return yaml.load(content, LOADER)
    except yaml.MarkedYAMLError as error:
        at = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ValueError(f"{at}{error.problem}") from None
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def to_yaml(content: Any) -> bytes:
    """Return plain values as YAML that `read_yaml` takes."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True).encode()


def check_extent(content: Any) -> None:
    """Check that to walk through plain values comes to an end. What is referred to twice counts twice.

    Raises:
        ValueError: they are nested deeper than ``DEEPEST``, or are too many.
    """
    level = [content]
    for _ in range(DEEPEST + 1):
        containers = (part for part in level if isinstance(part, dict | list | tuple))
        inside = (part.values() if isinstance(part, dict) else part for part in containers)
        level = [*itertools.islice(itertools.chain.from_iterable(inside), MOST + 1)]
        if len(level) > MOST:
            break
        if not level:
            return
    raise ValueError(TOO_MUCH)


def fits(value: Any, kind: Any) -> bool:
    """Say whether plain values are what a type says; see `misfits`."""
    return next(misfits(value, kind), None) is None


def misfits(value: Any, kind: Any, at: str = "") -> Iterator[str]:
    """Yield the dotted keys at which plain values are not what a type says, or lack what it requires.

    Args:
        kind: made of TypedDicts, dict, list, unions and plain types; a float must be finite.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if not any(fits(value, one) for one in inner):
            yield at
    elif is_typeddict(kind) and isinstance(value, dict):
        for name, own in get_type_hints(kind).items():
            key = f"{at}.{name}".lstrip(".")
            if name in value:
                yield from misfits(value[name], own, key)
            elif name in kind.__required_keys__:
                yield key
    elif origin is dict and isinstance(value, dict):
        for name, item in value.items():
            yield from misfits(item, inner[1], f"{at}.{name}") if fits(name, inner[0]) else [at]
    elif origin is list and isinstance(value, list):
        for place, item in enumerate(value):
            yield from misfits(item, inner[0], f"{at}.{place}")
    elif kind is float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            yield at
    elif kind is not Any and (type(value) is not kind):
        yield at


def unknown_keys(value: Any, kind: Any, at: str = "") -> Iterator[tuple[str, list[str]]]:
    """Yield the dotted keys that a type does not have, each with the names that it has in that place.

    Args:
        kind: as for `misfits`; what is inside a union is not looked into.
    """
    if is_typeddict(kind) and isinstance(value, dict):
        known = get_type_hints(kind)
        for name, item in value.items():
            key = f"{at}.{name}".lstrip(".")
            if name in known:
                yield from unknown_keys(item, known[name], key)
            else:
                yield key, [*known]
    elif get_origin(kind) is list and isinstance(value, list):
        for place, item in enumerate(value):
            yield from unknown_keys(item, get_args(kind)[0], f"{at}.{place}".lstrip("."))
