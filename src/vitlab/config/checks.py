"""What is wrong with a composed config: types, ranges, and what does not fit."""

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vitlab.config import keys
from vitlab.config.composer import compose
from vitlab.config.cross_checks import find_conflicts
from vitlab.config.schema import OPEN_NODES, is_open, rule
from vitlab.config.suggest import suggest_key
from vitlab.config.targets import bad_targets, check_targets
from vitlab.config.types import Constraint, found, like, show
from vitlab.core.errors import UserError
from vitlab.core.run_folder import RunFolder
from vitlab.core.suggest import did_you_mean, nearest
from vitlab.core.untrusted import check_extent, fits

# What every run's config has, with keys below it.
SECTIONS = (
    *("model", "optimizer", "scheduler", "augment", "data"),
    *("trainer", "task", "callbacks", "logger", "choices"),
)
NEEDED = ("seed", "model._target_", "data.kind", "data.image_size", "data.channels")


def to_plain(cfg: DictConfig) -> dict[str, Any]:
    """Return the config as plain dicts, lists and scalars, resolved, without Hydra's node.

    Raises:
        UserError: a value is missing (``???``), or an interpolation leads nowhere.
    """
    plain = unresolved(cfg)
    missing = [key for key, value in keys.leaves(plain) if value == "???"]
    if missing:
        raise UserError("\n".join(f"{key} has no value yet: add {key}=…" for key in missing))
    try:
        resolved = OmegaConf.to_container(OmegaConf.masked_copy(cfg, list(plain)), resolve=True)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "the config"
        raise UserError(f"{key} cannot be resolved: {str(error).splitlines()[0]}") from error
    assert isinstance(resolved, dict)
    if "study" in resolved:
        resolved["study"] = str(resolved["study"])  # study=2026 is a name
    if isinstance(ops := keys.get(resolved, "augment.ops"), list):  # a run's record holds what it used
        used = {k: v for k, v in resolved["augment"].items() if k in ops or not isinstance(v, dict)}
        resolved["augment"] = used
    return {str(key): value for key, value in resolved.items()}


def unresolved(cfg: DictConfig) -> dict[str, Any]:
    """Return the config as plain values with its interpolations as text, without Hydra's node."""
    plain = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items() if key != "hydra"}


def find_problems(plain: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, str]:
    """Return what is wrong in a resolved config: for each wrong key the first sentence found.

    Args:
        plain: the config.
        base: the YAML files' own values, which tell what keys exist, and the type of one without a rule.
    """
    problems: dict[str, str] = {}
    for key, sentence in (
        *_unknown_keys(plain, base),
        *_unknown_ops(plain, base),
        *_bad_values(plain, base, ""),
        *bad_targets(plain),
    ):
        problems.setdefault(key, sentence)
    for key, sentence in find_conflicts(plain, set(problems)):
        problems.setdefault(key, sentence)
    return problems


def lacking(record: Mapping[str, Any]) -> list[str]:
    """Return the dotted keys that a run's record lacks, of those that its command line gives today."""
    try:
        config = to_plain(compose(record.get("overrides") or ()))
    except UserError:  # conf/ has changed since
        return []
    return [key for key in keys.walk(make_record(config, {}, ())) if not keys.has(record, key)]


def check_record(record: Any, where: object) -> dict[str, Any]:
    """Check the config of a run that comes from a file, and return it: whoever wrote that is not known here.

    Keys that came later, or have gone since, are no fault of an older run's.

    Args:
        record: what was read.
        where: the file, for the message.

    Raises:
        UserError: it has not the form of a run's config, a value is out of range, or it names other code.
    """
    try:
        check_extent(record)
    except ValueError as error:
        raise UserError(f"the config in {where} cannot be read: {error}.") from None
    record = {"overrides": [], "swept": []} | record
    gone = [key for key in SECTIONS if key not in record]
    if gone := gone or [key for key in NEEDED if not keys.has(record, key)]:
        raise UserError(
            f"{where} has no {', '.join(gone)}, and the run cannot be built without it: it was cut "
            "or changed, or another version of vitlab wrote it."
        )
    problems = [f"{key}: expected keys below it" for key in SECTIONS if not isinstance(record[key], dict)]
    texts = [key for key in ("overrides", "swept") if not fits(record[key], list[str])]
    problems += [f"{key}: expected a list of texts" for key in texts]
    problems += [sentence for _, sentence in _bad_values(record, {}, "")]
    if problems:
        raise UserError("\n".join([f"the config in {where} cannot be used:", *problems]))
    check_targets(record)
    return record


def read_record(folder: RunFolder) -> dict[str, Any]:
    """Return the config of a run folder, checked by `check_record`."""
    return check_record(folder.read_config(), folder.config)


def make_record(
    config: Mapping[str, Any],
    choices: Mapping[str, str],
    overrides: Sequence[str],
    swept: Sequence[str] = (),
) -> dict[str, Any]:
    """Return what config.yaml of a run folder holds; how a sweep was run is no part of it.

    Args:
        config: resolved, plain values.
        choices: the option of each config group, such as ``{"model": "vit_small"}``.
        overrides: as they were typed.
        swept: the keys that a sweep varies.
    """
    config = {key: value for key, value in config.items() if key not in ("resume", "sweep")}
    chosen = {group: option for group, option in choices.items() if group != "sweep"}
    return config | {"choices": chosen, "overrides": list(overrides), "swept": list(swept)}


def _unknown_keys(plain: Mapping[str, Any], base: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the keys that the YAML files do not have, and nodes that were replaced by a value."""
    for key in keys.walk(plain):
        parent, _, part = key.rpartition(".")
        there = keys.get(base, parent) if parent else base
        if is_open(key) or not isinstance(there, Mapping):
            continue
        if part not in there:
            hint = did_you_mean(suggest_key(key, keys.walk(base), {}))
            yield key, f"{key}: no such key;{hint or f' the keys there are {names(there)}'}"
        elif isinstance(there[part], Mapping) and not isinstance(value := keys.get(plain, key), Mapping):
            expected = f"expected keys below it ({names(there[part])})"
            yield key, f"{key}={show(value)}: {expected}, found {found(value)}"


def _unknown_ops(plain: Mapping[str, Any], base: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what is wrong in the list of augmentations."""
    ops, augment = plain.get("augment", {}).get("ops"), base.get("augment", {})
    there = [key for key, value in augment.items() if isinstance(value, Mapping)]
    for place, name in enumerate(ops if isinstance(ops, list) else []):
        if name not in there:
            hint = did_you_mean(nearest(str(name), there)) or f" there are {', '.join(there)}"
            yield "augment.ops", f"augment.ops={show(ops)}: there is no augmentation '{name}';{hint}"
        elif name in ops[:place]:
            yield "augment.ops", f"augment.ops={show(ops)}: {name} is listed twice"


def names(node: Mapping[str, Any]) -> str:
    """Return the keys of a node as one text."""
    return ", ".join(str(key) for key in node if not str(key).startswith("_")) or "none"


def _bad_values(plain: Any, base: Any, at: str) -> Iterator[tuple[str, str]]:
    """Yield the leaves that are of a wrong type or out of range."""
    allowed = rule(at)
    if at in OPEN_NODES:
        allowed = Constraint("keys below it", lambda value: isinstance(value, Mapping))
    elif allowed is None and isinstance(plain, Mapping) and (base is None or isinstance(base, Mapping)):
        for part, value in plain.items():
            yield from _bad_values(value, keys.get(base, str(part)), keys.join(at, part))
        return
    allowed = allowed or like(base)
    if allowed is not None and not allowed.accepts(plain):
        expected = f"expected {allowed.says}, found {found(plain)}"
        yield at, f"{at}={show(plain)}: {expected}{_meant(at, plain, allowed)}"
        return
    for key, value in keys.leaves(plain, at):
        if isinstance(value, float) and not math.isfinite(value):
            yield key, f"{key}={show(value)}: expected a finite number, found {show(value)}"


def _read_size(text: str) -> list[int]:
    """Read ``32x64`` as [32, 64]."""
    height, width = text.lower().split("x")
    return [int(height), int(width)]


# How a refused value may have been meant: its type, a reading, and what to say where that is accepted.
READINGS: tuple[tuple[type, Callable[[Any], Any], str], ...] = (
    (float, lambda number: int(number) if number.is_integer() else number, "write it as a whole number: {}"),
    (str, json.loads, "write it without quotes: {}"),
    (str, lambda text: float(text[:-1]) / 100 if text.endswith("%") else text, "write a fraction: {}"),
    (str, _read_size, "a height and a width are a list: {}"),
    (str, lambda text: [text], "a list is written in brackets: {}"),
    (int, lambda number: f'"{number}"', "in quotes it is text: '{}'"),
)


def _meant(key: str, value: Any, allowed: Constraint) -> str:
    """Return how to write the value that was probably meant, or nothing."""
    for of, read, words in READINGS:
        with contextlib.suppress(ValueError):
            if type(value) is of and allowed.accepts(meant := read(value)):
                return "; " + words.format(f"{key}={show(meant).replace(', ', ',')}")
    return ""
