"""What was typed, read and checked before anything is combined: syntax, names, options."""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

from hydra.core.override_parser.types import Override, ValueType
from hydra.errors import HydraException

from vitlab.config import keys
from vitlab.config.checks import names, unresolved
from vitlab.config.composer import Composer
from vitlab.config.hydra_internals import make_parser
from vitlab.config.schema import OPEN_NODES, is_open, rule
from vitlab.config.suggest import suggest_key
from vitlab.core.errors import UserError
from vitlab.core.suggest import did_you_mean, nearest

# Hydra's functions for values that are swept, and how each is written.
SWEEPS = {
    "interval": "interval(1e-4,1e-2), from the lowest to the highest",
    "range": "range(1,5), from the first to below the last, or range(0,10,2)",
    "choice": "choice(2,4,8)",
    "glob": "glob(vit_*)",
    "tag": "tag(log,interval(1e-4,1e-2))",
    "sort": "sort(3,1,2)",
    "shuffle": "shuffle(1,2,3)",
}
# The groups of which several options may be chosen at once, as a list.
SEVERAL = ("logger",)
# Of Hydra's own keys those that its main function looks at and vitlab does not.
IGNORED = (
    *("hydra.job.chdir", "hydra.verbose", "hydra.output_subdir"),
    *("hydra.job_logging", "hydra.hydra_logging"),
)


class OverrideReader:
    """Parses overrides, and refuses what is wrong in them whatever the combination."""

    def __init__(self, composer: Composer, multirun: bool) -> None:
        self.composer, self.multirun = composer, multirun
        self.groups = composer.options
        self.parser = make_parser()

    def read(self, lines: Sequence[str]) -> list[Override]:
        """Return the overrides, parsed.

        Raises:
            UserError: with a line for each that cannot be read, or else for each that has no place here.
        """
        parsed = self._parse(lines)
        problems: list[str] = []
        chosen: dict[str, str] = {}
        for item in parsed:
            line, key = str(item.input_line), item.key_or_group
            if item.is_hydra_override():
                problems += _ignored(line)
                continue
            if key in chosen:
                problems.append(f"{line}: {chosen[key]} was given before; keep one")
            if key in self.groups:
                chosen[key] = line
            problems += self._find_problems(item, line, key)
        if problems:
            raise UserError("\n".join(problems))
        self._check_launcher([str(item.input_line) for item in parsed if item.is_hydra_override()])
        return parsed

    def _parse(self, lines: Sequence[str]) -> list[Override]:
        parsed: list[Override] = []
        problems: list[str] = []
        for line in lines:
            try:
                parsed += self.parser.parse_overrides([line])
            except HydraException:
                problems.append(self._unreadable(line))
            except ValueError:  # Python's own limit is 4,300
                problems.append(f"{line[:60]}…: a number of so many digits cannot be read")
        if problems:
            raise UserError("\n".join(self._spaced(lines) or problems))
        return parsed

    def _spaced(self, lines: Iterable[str]) -> list[str]:
        """Return what to say of keys and values typed as two words, such as ``lr 1e-3``."""
        said: list[str] = []
        for one, two in pairwise(line for line in lines if line != "="):
            key, value = one.removesuffix("="), two.removeprefix("=")
            if "=" not in key + value:
                meant = suggest_key(key, self._list_keys(), self.groups)
                if hint := did_you_mean([f"{match}={value}" for match in meant if "=" not in match]):
                    said.append(f"{one} {two}: a key and its value are written as one word;{hint}")
        return said

    def _list_keys(self) -> list[str]:
        """Return the dotted keys of the config as the files have it."""
        return list(keys.walk(unresolved(self.composer.compose(()))))

    def _unreadable(self, line: str) -> str:
        key, sign, value = line.partition("=")
        if not sign:
            if key in self.groups:
                return f"{line}: expected {key}=option; {self._choose(key)}"
            matches = [f"{group}={line}" for group, options in self.groups.items() if line in options]
            return f"{line}: expected key=value, found no '=';{did_you_mean(matches)}".rstrip(";")
        if "/" in key and "." in key:
            return f"{line}: a key has points where a group has slashes: {key.replace('/', '.')}={value}"
        if not key.strip() or key != key.strip() or value != value.lstrip():
            return f"{line}: expected key=value without spaces around '='"
        if sweep := _unreadable_sweep(value):
            return f"{line}: {sweep}"
        if value.startswith("(") and value.endswith(")"):
            return f"{line}: a list is written in square brackets: {key}=[{value[1:-1]}]"
        if value.endswith((",", ";")):
            return f"{line}: the value ends in '{value[-1]}'; write {key}={value.rstrip(',;')}"
        return (
            f"{line}: the value cannot be read; close brackets and quotes, and put text with "
            f"special characters in quotes: '{key}=\"{value}\"'"
        )

    def _check_launcher(self, lines: Sequence[str]) -> None:
        """Raise for a key that the chosen launcher does not have."""
        typed = [line.partition("=")[0].lstrip("+") for line in lines]
        if "hydra.launcher" in typed:
            raise UserError("hydra.launcher is chosen as a whole with a slash, as hydra/launcher=joblib")
        typed = [key.removeprefix("hydra.launcher.") for key in typed if key.startswith("hydra.launcher.")]
        if not typed:
            return
        chosen = self.composer.compose(tuple(line for line in lines if line.startswith("hydra/"))).hydra
        there = [str(key) for key in chosen.launcher]
        for key in typed:
            if key.partition(".")[0] not in there:
                name = chosen.runtime.choices["hydra/launcher"]
                hint = did_you_mean(nearest(key, there)) or f" its keys are {names(chosen.launcher)}"
                raise UserError(f"hydra.launcher.{key}: hydra/launcher={name} has no such key;{hint}")

    def _find_problems(self, item: Override, line: str, key: str) -> list[str]:
        """Return what is wrong in one override that is not for Hydra itself."""
        if item.package is not None:
            return [f"{line}: packages (@) are not used here; write {key}=…"]
        if item.is_delete():
            default = "the option none" if "none" in self.groups.get(key, []) else "another value"
            return [f"{line}: nothing can be removed from the config (~); give {key} {default}"]
        if (item.is_add() or item.is_force_add()) and not is_open(key):
            return [self._added(line, key)]
        group, _, rest = key.partition(".")
        if rest.rpartition(".")[2].startswith("_") and not is_open(key):
            return [f"{line}: code is chosen with its keys, by {group}=OPTION or a file of your own in conf/"]
        if key == "data.kind":
            return [f"{line}: a kind of data is chosen with its keys, as {line.replace('data.kind', 'data')}"]
        part = key.replace(".", "/")
        if "." in key and part in self.groups and not line.startswith(f"{key}={{"):
            meant = line.replace(key, part, 1)
            return [f"{line}: a part is chosen with a slash: {meant}; {self._choose(part)}"]
        if item.is_sweep_override() and not self.multirun:
            typed, otherwise = item.get_value_string(), ""
            if _is_decimal_comma(key, typed):
                otherwise = f", or write {key}={typed.replace(',', '.')} if one number is meant"
            elif item.value_type == ValueType.SIMPLE_CHOICE_SWEEP and key in SEVERAL:
                otherwise = f", or write '{key}=[{typed}]' to have them at once"
            elif item.value_type == ValueType.SIMPLE_CHOICE_SWEEP and key not in self.groups:
                otherwise = f", or write {key}=[{typed}] if one list is meant"
            return [f"{line} gives several values: add -m to run each of them{otherwise}"]
        if item.is_sweep_override() and not item.is_discrete_sweep():
            return [f"{line}: interval() has no list of values; use choice(…) or range(…), or sweep=optuna"]
        if item.is_sweep_override() and (wrong := _empty_sweep(item)):
            return [f"{line}: {wrong}"]
        return self._bad_options(item, line, key) if key in self.groups else []

    def _added(self, line: str, key: str) -> str:
        typed = line.lstrip("+")
        known = self._list_keys()
        if key in self.groups or key in known:
            return f"{line}: {key} is there already; write {typed} without the plus"
        return f"{line}: keys can be added under {' or '.join(OPEN_NODES)} alone;" + (
            did_you_mean(suggest_key(key, known, self.groups)) or f" '{key}' is no key of the config"
        )

    def _bad_options(self, item: Override, line: str, key: str) -> list[str]:
        values = list(item.sweep_string_iterator()) if item.is_sweep_override() else [item.value()]
        if not values:
            return [f"{line}: no option matches; {self._choose(key)}"]
        if key in SEVERAL:
            lists = [_split(value) for value in values]
            values = [option for chosen in lists for option in chosen]
            if any("none" in chosen[:-1] + chosen[1:] for chosen in lists):
                return [f"{line}: none and another one are chosen; leave one of them out"]
        problems: list[str] = []
        for value in values:
            if isinstance(value, dict | list):
                problems.append(
                    f"{line}: expected one option; {self._choose(key)}. Its keys are set "
                    f"one by one, as {key}.name=value"
                )
            elif value is None or value == "null":
                needed = f"{key} is needed; {self._choose(key)}"
                problems.append(f"{key}=null: {'leave experiment out' if key == 'experiment' else needed}")
            elif str(value) not in self.groups[key]:
                hint = did_you_mean(nearest(str(value), self.groups[key]))
                choose = self._choose(key)
                problems.append(f"{key}={value}:{hint} {choose[0].upper() + choose[1:] if hint else choose}")
        return problems

    def _choose(self, group: str) -> str:
        return f"the options of {group} are {', '.join(self.groups[group]) or 'none yet'}"


def _split(value: Any) -> list[Any]:
    """Return the options in a list of them, which is text where it is swept; of another value itself."""
    if isinstance(value, str) and value.startswith("["):
        value = value.strip("[]").split(",")
    return value if isinstance(value, list) and value else [value]


def _ignored(line: str) -> list[str]:
    """Return what to say of what Hydra's own main function would do and nothing here does."""
    key, _, value = line.lstrip("+").partition("=")
    if not keys.under(key.replace("/", "."), IGNORED) or value.lower() in ("false", "none", "null"):
        return []
    return [f"{line} has no effect: a run stays where it is called and keeps its own log; leave it out"]


def _unreadable_sweep(value: str) -> str:
    """Return what is wrong with a call such as ``interval(1e-4)``, or nothing where the value is none."""
    name, bracket, _ = value.partition("(")
    if not bracket or not name.isidentifier():
        return ""
    closed = value.endswith(")")
    if name in SWEEPS:
        wrong = "takes other values than these" if closed else "cannot be read, close its bracket"
        return f"{name}() {wrong}; write it as {SWEEPS[name]}"
    hint = did_you_mean(nearest(name, SWEEPS)) or (f" there are {', '.join(SWEEPS)}" if closed else "")
    return f"there is no function {name}();{hint}" if hint else ""


def _empty_sweep(item: Override) -> str:
    """Return what is wrong with a sweep that Hydra has read and cannot count, such as ``range(0,1,0)``."""
    try:
        next(item.sweep_string_iterator(), None)
    except (ValueError, ArithmeticError):
        return _unreadable_sweep(str(item.get_value_string()))
    return ""


def _is_decimal_comma(key: str, value: str) -> bool:
    """Say whether two values are one number with a comma, such as ``0,001``."""
    whole, _, decimals = value.partition(",")
    allowed = rule(key)
    if not (whole == "0" and decimals.isdigit()) or allowed is None:
        return False
    return allowed.accepts(float(f"0.{decimals}")) and not allowed.accepts([0, int(decimals)])
