"""The check of a command line before its first job starts: syntax, names, values, combinations."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice, pairwise, product
from math import prod
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override, ValueType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from vitlab.config import keys
from vitlab.config.checks import find_problems, make_record, names, to_plain, unresolved
from vitlab.config.composer import CONF, Composer, reason, without_hydra
from vitlab.config.hydra_internals import make_parser
from vitlab.config.schema import OPEN_NODES, is_open, rule
from vitlab.config.suggest import suggest_key
from vitlab.config.types import show
from vitlab.core.errors import UserError
from vitlab.core.suggest import did_you_mean, nearest

MOST_JOBS = 10_000
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
# Of Hydra's own keys those that its main function looks at and vitlab does not.
IGNORED = (
    "hydra.job.chdir",
    "hydra.verbose",
    "hydra.output_subdir",
    "hydra.job_logging",
    "hydra.hydra_logging",
)


@dataclass(frozen=True)
class Combination:
    """One run that a command line asks for, composed and checked.

    Attributes:
        overrides: as ``key=value``, Hydra's own left out.
        swept: the keys that differ between the combinations.
        config: composed.
        choices: the option of each config group.
        problems: why it cannot run; empty for most.
        plain: the resolved config as plain values; empty where it cannot be resolved.
        folder: of this run, or of the whole sweep, as Hydra's node names it under these overrides.
        environment: variables to set for it (``hydra.job.env_set``).
    """

    overrides: tuple[str, ...]
    swept: tuple[str, ...]
    config: DictConfig
    choices: Mapping[str, str]
    problems: tuple[str, ...]
    plain: Mapping[str, Any] = field(default_factory=dict)
    folder: Path = Path()
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def record(self) -> dict[str, Any]:
        """What config.yaml of its run folder holds."""
        return make_record(self.plain, self.choices, self.overrides, self.swept)

    @property
    def label(self) -> str:
        """What sets it apart, such as ``model.depth=4 seed=1``."""
        return " ".join(line for line in self.overrides if line.partition("=")[0].lstrip("+") in self.swept)

    def refused(self, problem: str) -> "Combination":
        """Return the same combination with one problem more."""
        return replace(self, problems=(*self.problems, problem))


def combinations(
    overrides: Sequence[str], multirun: bool = False, *, root: str = "train"
) -> list[Combination]:
    """Return every job that a command line asks for, in Hydra's order, with what is wrong in some of them.

    Args:
        overrides: as typed, without flags.
        multirun: whether ``-m`` was given.
        root: of ``conf/<root>.yaml``.

    Raises:
        UserError: something is wrong in the overrides themselves or in every combination, or no combination
            can run: only a sweep of which a part can run is worth starting.
    """
    with Composer(root) as composer:
        return _Preflight(composer, overrides, multirun).run()


def preflight(overrides: Sequence[str], multirun: bool = False, *, root: str = "train") -> list[DictConfig]:
    """Return the checked configs of the jobs that can run; see `combinations`."""
    return [job.config for job in combinations(overrides, multirun, root=root) if not job.problems]


def report(jobs: Sequence[Combination], what: str) -> str:
    """Return which combinations are wrong: each reason once, with its combinations below it.

    Args:
        jobs: of which at least one is wrong.
        what: happens to those, such as ``"are skipped"``.
    """
    refused: dict[tuple[str, ...], list[int]] = {}
    for number, job in enumerate(jobs):
        if job.problems:
            refused.setdefault(job.problems, []).append(number)
    bad = sum(map(len, refused.values()))
    if len(jobs) == 1:
        return "\n".join(next(iter(refused)))
    if len(refused) == 1 and bad == len(jobs):
        return "\n".join([*next(iter(refused)), f"(in each of the {bad} combinations)"])
    lines = [f"{bad} of {len(jobs)} combinations {what}:"]
    for problems, numbers in refused.items():
        lines += [f"  {problem}" for problem in problems]
        lines += [f"    #{number}: {jobs[number].label}" for number in numbers]
    return "\n".join(lines)


class _Preflight:
    """One command line, parsed and then checked."""

    def __init__(self, composer: Composer, overrides: Sequence[str], multirun: bool) -> None:
        self.composer = composer
        self.parser = make_parser()
        self.groups = composer.options
        parsed = self._parse(overrides)
        self.hydra = tuple(str(item.input_line) for item in parsed if item.is_hydra_override())
        self.ours = [item for item in parsed if not item.is_hydra_override()]
        self.multirun = multirun or "hydra.mode=MULTIRUN" in self.hydra

    def run(self) -> list[Combination]:
        self._refuse(self.ours)
        self._refuse_ignored()
        self._refuse_launcher()
        master = self._compose(item for item in self.ours if not item.is_sweep_override())
        ours = self.ours
        if self.multirun:
            params = OmegaConf.select(master, "hydra.sweeper.params") or {}
            of_recipe = self._parse([f"{key}={value}" for key, value in params.items()])
            self._refuse(of_recipe)
            ours = of_recipe + ours
        swept = tuple({item.key_or_group: None for item in ours if item.is_sweep_override()})
        jobs = [self._build(job, swept) for job in self._expand(ours)]
        everywhere = set.intersection(*(set(job.problems) for job in jobs))
        if everywhere or all(job.problems for job in jobs):
            raise UserError(report(jobs, "are refused, none was started"))
        folder, environment = self._find_folder(item for item in self.ours if not item.is_sweep_override())
        return [replace(job, folder=folder, environment=environment) for job in jobs]

    def _find_folder(self, items: Iterable[Override]) -> tuple[Path, dict[str, str]]:
        """Return the folder of the run, or of the sweep, and the variables to set for it."""
        items = list(items)
        lines = [str(item.input_line) for item in self.ours]
        whole = self._compose(items).copy()
        for item in items:
            if not self._is_group(item):
                self._apply(item, whole, unresolved(whole), {})
        node = whole.hydra
        with open_dict(node):
            node.overrides.task = lines
            node.job.override_dirname = ",".join(sorted(lines))
        key = "sweep" if self.multirun else "run"
        try:
            environment = OmegaConf.to_container(node.job.env_set, resolve=True)
            assert isinstance(environment, dict)
            return Path(node[key].dir), {str(name): str(value) for name, value in environment.items()}
        except OmegaConfBaseException as error:
            raise UserError(f"hydra.{key}.dir cannot be resolved: {reason(error)}") from error

    def _parse(self, lines: Sequence[str]) -> list[Override]:
        parsed: list[Override] = []
        problems: list[str] = []
        for line in lines:
            try:
                parsed += self.parser.parse_overrides([line])
            except HydraException:
                problems.append(self._unreadable(line))
        if problems:
            raise UserError("\n".join(self._spaced(lines) or problems))
        return parsed

    def _spaced(self, lines: Iterable[str]) -> list[str]:
        """Return what to say of keys and values typed as two words, such as ``lr 1e-3``."""
        said: list[str] = []
        for one, two in pairwise(line for line in lines if line != "="):
            key, value = one.removesuffix("="), two.removeprefix("=")
            if "=" not in key + value:
                known = keys.walk(unresolved(self.composer.compose(())))
                meant = [match for match in suggest_key(key, known, self.groups) if "=" not in match]
                if hint := did_you_mean([f"{match}={value}" for match in meant]):
                    said.append(f"{one} {two}: a key and its value are written as one word;{hint}")
        return said

    def _unreadable(self, line: str) -> str:
        key, sign, value = line.partition("=")
        if not sign:
            if key in self.groups:
                return f"{line}: expected {key}=option; {self._choose(key)}"
            matches = [f"{group}={line}" for group, names in self.groups.items() if line in names]
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

    def _is_group(self, item: Override) -> bool:
        return item.key_or_group in self.groups

    def _refuse(self, items: Iterable[Override]) -> None:
        """Raise for what is wrong in the overrides alone, whatever the combination."""
        problems: list[str] = []
        groups: dict[str, str] = {}
        for item in items:
            line, key = str(item.input_line), item.key_or_group
            if self._is_group(item):
                if key in groups:
                    problems.append(f"{line}: {groups[key]} was given before; keep one")
                groups[key] = line
            problems += self._malformed(item, line, key)
        if problems:
            raise UserError("\n".join(problems))

    def _refuse_ignored(self) -> None:
        """Raise for what Hydra's own main function would do and nothing here does."""
        for line in self.hydra:
            key, _, value = line.lstrip("+").partition("=")
            if keys.under(key.replace("/", "."), IGNORED) and value.lower() not in ("false", "none", "null"):
                raise UserError(
                    f"{line} has no effect: a run stays in the folder it is called from and writes its own "
                    "train.log and config.yaml. Leave it out."
                )

    def _refuse_launcher(self) -> None:
        """Raise for a key that the chosen launcher does not have."""
        set_here = [line.partition("=")[0].lstrip("+") for line in self.hydra]
        typed = [key.removeprefix("hydra.launcher.") for key in set_here if key.startswith("hydra.launcher.")]
        if not typed:
            return
        chosen = self.composer.compose(tuple(line for line in self.hydra if line.startswith("hydra/"))).hydra
        there = [str(key) for key in chosen.launcher]
        for key in typed:
            if key.partition(".")[0] not in there:
                name = chosen.runtime.choices["hydra/launcher"]
                hint = did_you_mean(nearest(key, there)) or f" its keys are {names(chosen.launcher)}"
                raise UserError(f"hydra.launcher.{key}: hydra/launcher={name} has no such key;{hint}")

    def _malformed(self, item: Override, line: str, key: str) -> list[str]:
        if item.package is not None:
            return [f"{line}: packages (@) are not used here; write {key}=…"]
        if item.is_delete():
            default = "the option none" if "none" in self.groups.get(key, []) else "another value"
            return [f"{line}: nothing can be removed from the config (~); give {key} {default}"]
        if (item.is_add() or item.is_force_add()) and not is_open(key):
            return [self._added(line, key)]
        part = key.replace(".", "/")
        if "." in key and part in self.groups and not line.startswith(f"{key}={{"):
            meant = line.replace(key, part, 1)
            return [f"{line}: a part is chosen with a slash: {meant}; {self._choose(part)}"]
        if item.is_sweep_override() and not self.multirun:
            typed, otherwise = item.get_value_string(), ""
            if _is_decimal_comma(key, typed):
                otherwise = f", or write {key}={typed.replace(',', '.')} if one number is meant"
            elif item.value_type == ValueType.SIMPLE_CHOICE_SWEEP and not self._is_group(item):
                otherwise = f", or write {key}=[{typed}] if one list is meant"
            return [f"{line} gives several values: add -m to run each of them{otherwise}"]
        if item.is_sweep_override() and not item.is_discrete_sweep():
            if any(name.startswith("hydra/sweeper=") for name in self.hydra):
                return []  # such a sweeper draws from the interval
            return [f"{line}: interval() has no list of values; use choice(…) or range(…), or sweep=optuna"]
        return self._bad_options(item, line, key) if self._is_group(item) else []

    def _added(self, line: str, key: str) -> str:
        typed = line.lstrip("+")
        known = list(keys.walk(unresolved(self.composer.compose(self.hydra))))
        if key in self.groups or key in known:
            return f"{line}: {key} is there already; write {typed} without the plus"
        return f"{line}: keys can be added under {' or '.join(OPEN_NODES)} alone;" + (
            did_you_mean(suggest_key(key, known, self.groups)) or f" '{key}' is no key of the config"
        )

    def _bad_options(self, item: Override, line: str, key: str) -> list[str]:
        values = list(item.sweep_string_iterator()) if item.is_sweep_override() else [item.value()]
        if not values:
            return [f"{line}: no option matches; {self._choose(key)}"]
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

    def _expand(self, items: list[Override]) -> list[list[Override]]:
        """Return the jobs as Hydra's basic sweeper makes them: all combinations, in its order."""
        if not self.multirun:
            return [items]
        choices: dict[str, list[str]] = {}
        for item in items:
            key = item.get_key_element()
            if not item.is_sweep_override():
                choices[key] = [str(item.input_line)]
            elif item.is_discrete_sweep():
                values = islice(item.sweep_string_iterator(), MOST_JOBS + 1)
                choices[key] = [f"{key}={value}" for value in values]
            else:  # an interval, for a sweeper that draws from it: its ends stand for it
                sweep: Any = item.value()
                choices[key] = [f"{key}={sweep.start}", f"{key}={sweep.end}"]
            if not choices[key]:
                raise UserError(f"{item.input_line} gives no value at all")
        number = prod(map(len, choices.values()))
        if number > MOST_JOBS:
            raise UserError(
                f"the sweep has {number:,} combinations or more, and {MOST_JOBS:,} is the most: "
                "sweep fewer values"
            )
        parsed = {line: self.parser.parse_override(line) for lines in choices.values() for line in lines}
        return [[parsed[line] for line in lines] for lines in product(*choices.values())]

    def _compose(self, items: Iterable[Override]) -> DictConfig:
        """Return the config of the options chosen; refuse a part (model/tokenizer) that the model lacks."""
        chosen = [item for item in items if self._is_group(item)]
        parts = [item for item in chosen if "/" in item.key_or_group]
        whole = (str(item.input_line) for item in chosen if item not in parts)
        choices = self.composer.compose((*self.hydra, *whole)).hydra.runtime.choices
        for item in parts:
            group, _, name = item.key_or_group.rpartition("/")
            if item.key_or_group not in choices:
                raise UserError(
                    f"{item.input_line}: {group}={choices[group]} has no {name} to choose; leave it out, or "
                    f"take another {group}"
                )
        return self.composer.compose((*self.hydra, *(str(item.input_line) for item in chosen)))

    def _build(self, job: list[Override], swept: tuple[str, ...]) -> Combination:
        """Return one combination, with what is wrong in it."""
        lines = tuple(str(item.input_line) for item in job)
        try:
            composed = self._compose(job)
        except UserError as error:
            return Combination(lines, swept, DictConfig({}), {}, (str(error),))
        choices = {
            group: option
            for group, option in composed.hydra.runtime.choices.items()
            if not group.startswith("hydra/")
        }
        experiment = choices.get("experiment")
        base = composed
        if experiment is not None:  # a recipe is checked against what the files say without it
            others = (f"{group}={option}" for group, option in choices.items() if group != "experiment")
            base = self.composer.compose((*self.hydra, *others))
        cfg = without_hydra(composed)
        known = unresolved(composed)
        plain: dict[str, Any] = {}
        problems: dict[str, str] = {}
        for item in job:
            if not self._is_group(item):
                problems |= self._apply(item, cfg, known, choices)
        try:
            plain = to_plain(cfg)
            idle = {item.key_or_group: said for item in job if (said := _has_no_effect(item, plain))}
            problems = idle | find_problems(plain, unresolved(base)) | problems
            written = unresolved(cfg)
            # What only follows another key (model.image_size the data's) is wrong where that key is.
            same = {key for key in problems if str(keys.get(written, key))[2:-1] in problems}
            problems = {key: said for key, said in problems.items() if key not in same}
        except UserError as error:
            problems[""] = str(error)
        typed = {item.key_or_group for item in job}
        sentences = tuple(
            f"{sentence} (set by experiment={experiment})"
            if base is not composed and key not in typed and self._differs(key, composed, base)
            else sentence
            for key, sentence in problems.items()
        )
        return Combination(lines, swept, cfg, choices, sentences, plain)

    @staticmethod
    def _differs(key: str, composed: DictConfig, base: DictConfig) -> bool:
        try:
            return bool(OmegaConf.select(composed, key) != OmegaConf.select(base, key))
        except OmegaConfBaseException:
            return False

    def _apply(
        self, item: Override, cfg: DictConfig, known: dict[str, Any], choices: dict[str, str]
    ) -> dict[str, str]:
        """Set one value in ``cfg``, whose keys are ``known``, as Hydra does; return what is wrong with it."""
        line, key = str(item.input_line), item.key_or_group
        adds = item.is_add() or item.is_force_add()
        if not adds and not keys.has(known, key):
            return {key: self._unknown(line, key, known, choices)}
        try:
            OmegaConf.update(cfg, key, item.value(), merge=True, force_add=adds)
        except OmegaConfBaseException as error:
            return {key: f"{line}: {reason(error)}"}
        return {}

    def _unknown(self, line: str, key: str, known: dict[str, Any], choices: dict[str, str]) -> str:
        group, _, rest = key.partition(".")
        part, _, below = rest.partition(".")
        if below and f"{group}/{part}" in choices:
            group, rest = f"{group}/{part}", below
        if is_open(key) and keys.has(known, OPEN_NODES[0]):
            return f"{line}: a key of your own under {OPEN_NODES[0]} takes a plus: +{line}"
        inside = bool(rest) and group in choices
        place = f"{group}={choices[group]} has no key '{rest}'" if inside else "no such key"
        files = {name: CONF / group / f"{name}.yaml" for name in self.groups[group]} if inside else {}
        having = [f"{group}={name}" for name, file in files.items() if rest in OmegaConf.load(file)]
        hint = did_you_mean(having or suggest_key(key, keys.walk(known), self.groups))
        if not hint:
            node: Any = known
            for name in group.split("/") if inside else ():
                node = node[name]
            hint = f" the keys there are {', '.join(n for n in node if not n.startswith('_')) or 'none'}"
        return f"{key}: {place};{hint}"


def _unreadable_sweep(value: str) -> str:
    """Return what is wrong with a call such as ``interval(1e-4)``, or nothing where the value is none."""
    name, bracket, _ = value.partition("(")
    if not bracket or not name.isidentifier() or not value.endswith(")"):
        return ""
    if name in SWEEPS:
        return f"{name}() takes other values than these; write it as {SWEEPS[name]}"
    return f"there is no function {name}();" + (
        did_you_mean(nearest(name, SWEEPS)) or f" there are {', '.join(SWEEPS)}"
    )


def _is_decimal_comma(key: str, value: str) -> bool:
    """Say whether two values are one number with a comma, such as ``0,001``."""
    whole, _, decimals = value.partition(",")
    kind = rule(key)
    if not (whole == "0" and decimals.isdigit()) or kind is None:
        return False
    return kind.accepts(float(f"{whole}.{decimals}")) and not kind.accepts([int(whole), int(decimals)])


def _has_no_effect(item: Override, plain: dict[str, Any]) -> str:
    """Return what to say of a setting that another setting overrules, or nothing."""
    group, _, rest = item.key_or_group.partition(".")
    if group == "scheduler" and rest.endswith("_fraction"):
        # A fraction is what counts where no length is given, and so has a value in every YAML.
        name = rest.removesuffix("_fraction")
        for way in (f"{name}_epochs", f"{name}_steps", "every_epochs" if name == "milestone" else ""):
            if (length := plain["scheduler"].get(way)) is not None:
                return (
                    f"{item.input_line} has no effect beside scheduler.{way}={show(length)}: leave it out or "
                    f"set scheduler.{way}=null"
                )
    name, _, key = rest.partition(".")
    ops = plain.get("augment", {}).get("ops")
    if group != "augment" or not key or not isinstance(ops, list) or name in ops:
        return ""
    listed = ",".join(map(str, [*ops, name]))
    return f"{item.input_line} has no effect: {name} is not in augment.ops; add 'augment.ops=[{listed}]'"
