"""What is wrong with a composed config: kinds, ranges, and what does not fit."""

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
from vitlab.config.targets import ALLOWED_TARGETS, bad_targets
from vitlab.config.types import Kind, found, like, show
from vitlab.core.errors import UserError
from vitlab.core.suggest import did_you_mean, nearest

Problems = dict[str, str]  # key -> sentence; one a key, the first found


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
    if "augment" in resolved:
        resolved["augment"] = _used(resolved["augment"])
    return {str(key): value for key, value in resolved.items()}


def _used(augment: Any) -> Any:
    """Leave out the augmentations that are not in ``ops``: a run's record holds what the run used."""
    ops = augment.get("ops") if isinstance(augment, dict) else None
    if not isinstance(ops, list):
        return augment
    return {key: value for key, value in augment.items() if key in ops or not isinstance(value, dict)}


def unresolved(cfg: DictConfig) -> dict[str, Any]:
    """Return the config as plain values with its interpolations as text, without Hydra's node."""
    plain = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items() if key != "hydra"}


def check(cfg: DictConfig | Mapping[str, Any]) -> None:
    """Check a composed config.

    Raises:
        UserError: with a line for each thing that is wrong.
    """
    problems = find_problems(to_plain(cfg) if isinstance(cfg, DictConfig) else cfg)
    if problems:
        raise UserError("\n".join(problems.values()))


def check_targets(node: Any, allowed: Sequence[str] = ALLOWED_TARGETS) -> None:
    """Check which code a config names: whoever made a checkpoint must not choose what runs.

    Args:
        node: a config, or a part of one.
        allowed: what a ``_target_`` may begin with.

    Raises:
        UserError: a ``_target_`` names other code.
    """
    problems = dict(bad_targets(node, allowed=allowed))
    if problems:
        raise UserError("\n".join(problems.values()))


def find_problems(plain: Mapping[str, Any], base: Mapping[str, Any] | None = None) -> Problems:
    """Return what is wrong in a resolved config.

    Args:
        plain: the config.
        base: the YAML files' own values, which tell what keys exist, and the kind of one without a rule.
    """
    problems: Problems = {}
    if base is not None:
        problems |= dict(_strangers(plain, base, "", list(keys.walk(base))))
        problems |= dict(_unknown_ops(plain, base))
    for key, sentence in (*_bad_values(plain, base, ""), *bad_targets(plain)):
        problems.setdefault(key, sentence)
    for key, sentence in find_conflicts(plain, set(problems)):
        problems.setdefault(key, sentence)
    return problems


def lacking(record: Mapping[str, Any]) -> list[str]:
    """Return the dotted keys that a run's record lacks, of those that its command line gives today."""
    try:
        whole = to_plain(compose(record.get("overrides") or ()))
    except UserError:  # conf/ has changed since
        return []
    whole |= {"choices": {}, "overrides": [], "swept": []}
    # `make_record` leaves these two out.
    lacks = (key for key in keys.walk(whole) if not keys.has(record, key))
    return [key for key in lacks if not keys.under(key, ("resume", "sweep"))]


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


def _strangers(
    plain: Mapping[str, Any], base: Mapping[str, Any], at: str, top: list[str]
) -> Iterator[tuple[str, str]]:
    """Yield the keys that the YAML files do not have, and nodes that were replaced by a value."""
    for part, value in plain.items():
        key = keys.join(at, part)
        if is_open(key) or (rule(key) is not None and part in base):
            continue
        if part not in base:
            hint = did_you_mean(suggest_key(key, top, {})) or f" the keys there are {names(base)}"
            yield key, f"{key}: no such key;{hint}"
        elif isinstance(base[part], Mapping):
            if isinstance(value, Mapping):
                yield from _strangers(value, base[part], key, top)
            else:
                expected = f"expected keys below it ({names(base[part])})"
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
    """Yield the leaves that are of a wrong kind or out of range."""
    kind = rule(at) if at else None
    if at in OPEN_NODES:
        kind = Kind("keys below it", lambda value: isinstance(value, Mapping))
    elif kind is None and isinstance(plain, Mapping):
        for part, value in plain.items():
            below = base.get(part) if isinstance(base, Mapping) else None
            yield from _bad_values(value, below, keys.join(at, part))
        return
    kind = kind or like(base)
    if kind is not None and not kind.accepts(plain):
        sentence = f"{at}={show(plain)}: expected {kind.says}, found {found(plain)}"
        yield at, sentence + _hint(at, plain, kind)
        return
    for key, value in keys.leaves(plain, at):
        if isinstance(value, float) and not math.isfinite(value):
            yield key, f"{key}={show(value)}: expected a finite number, found {show(value)}"


def _hint(key: str, value: Any, kind: Kind) -> str:
    """Return how to write the value that was probably meant, or nothing."""
    readings: list[tuple[type, Callable[[Any], Any], str]] = [
        (float, int, "; write it as a whole number: {key}={meant}"),
        (str, int, "; write it as a number, without quotes: {key}={meant}"),
        (str, float, "; write it as a number, without quotes: {key}={meant}"),
        (str, {"true": True, "false": False}.__getitem__, "; write it without quotes: {key}={meant}"),
        (str, _percent, "; a share is written as a fraction: {key}={meant}"),
        (str, _size, "; a height and a width are a list: {key}={meant}"),
        (str, lambda text: [text], "; a list is written in brackets: {key}={meant}"),
        (int, str, "; in quotes it is text: '{key}=\"{meant}\"'"),
    ]
    for of, read, words in readings:
        if type(value) is not of:
            continue
        try:
            meant = read(value)
        except (ValueError, OverflowError, KeyError):
            continue
        if kind.accepts(meant) and (of is str or of is int or meant == value):
            return words.format(key=key, meant=show(meant).replace(", ", ","))
    return ""


def _percent(text: str) -> float:
    """Read ``20%`` as 0.2."""
    number = text.removesuffix("%")
    if number == text:
        raise ValueError
    return float(number) / 100


def _size(text: str) -> list[int]:
    """Read ``32x64`` as [32, 64]."""
    height, width = text.lower().split("x")
    return [int(height), int(width)]
