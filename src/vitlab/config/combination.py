"""The runs that a command line asks for: every combination of what was typed, composed and checked."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice, product
from math import prod
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from vitlab.config import keys
from vitlab.config.checks import find_problems, make_record, names, to_plain, unresolved
from vitlab.config.composer import CONF, Composer, reason
from vitlab.config.overrides import SEVERAL, OverrideReader
from vitlab.config.schema import OPEN_NODES, is_open
from vitlab.config.suggest import suggest_key
from vitlab.config.types import show
from vitlab.core.errors import UserError
from vitlab.core.suggest import did_you_mean

MOST_JOBS = 10_000


@dataclass(frozen=True)
class Combination:
    """One run that a command line asks for, composed and checked.

    Attributes:
        overrides: as ``key=value``, Hydra's own left out.
        swept: the keys that differ between the combinations.
        choices: the option of each config group; empty where it cannot be composed.
        problems: why it cannot run; empty for most.
        plain: the resolved config as plain values; empty where it cannot be resolved.
        folder: of this run, or of the whole sweep, as Hydra's node names it under these overrides.
        environment: variables to set for it (``hydra.job.env_set``).
    """

    overrides: tuple[str, ...]
    swept: tuple[str, ...]
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
        reader = OverrideReader(composer, multirun)
        typed = reader.read(overrides)
        builder = _Builder(composer, tuple(_line(item) for item in typed if item.is_hydra_override()))
        ours = [item for item in typed if not item.is_hydra_override()]
        fixed = [item for item in ours if not item.is_sweep_override()]
        items, lines = ours, [ours]
        if multirun:
            params = OmegaConf.select(builder.compose(fixed), "hydra.sweeper.params") or {}
            items = reader.read([f"{key}={value}" for key, value in params.items()]) + ours
            lines = _expand(items, reader.parser)
        swept = tuple({item.key_or_group: None for item in items if item.is_sweep_override()})
        jobs = [builder.build(line, swept) for line in lines]
        everywhere = set.intersection(*(set(job.problems) for job in jobs))
        if everywhere or all(job.problems for job in jobs):
            raise UserError(report(jobs, "are refused, none was started"))
        config, _ = builder.set_values(fixed)
    folder, environment = _read_hydra_node(config, list(map(_line, ours)), "sweep" if multirun else "run")
    return [replace(job, folder=folder, environment=environment) for job in jobs]


def preflight(overrides: Sequence[str], multirun: bool = False, *, root: str = "train") -> list[DictConfig]:
    """Return the checked configs of the jobs that can run, resolved; see `combinations`."""
    jobs = combinations(overrides, multirun, root=root)
    return [OmegaConf.create(dict(job.plain)) for job in jobs if not job.problems]


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
    if len(refused) == 1 and bad == len(jobs):
        (problems,) = refused
        return "\n".join([*problems, f"(in each of the {bad} combinations)"] if bad > 1 else problems)
    lines = [f"{bad} of {len(jobs)} combinations {what}:"]
    for problems, numbers in refused.items():
        lines += [f"  {problem}" for problem in problems]
        lines += [f"    #{number}: {jobs[number].label}" for number in numbers]
    return "\n".join(lines)


def _read(file: Path) -> Any:
    return OmegaConf.to_container(OmegaConf.load(file), resolve=False)


def _line(item: Override) -> str:
    return str(item.input_line)


def _expand(items: Sequence[Override], parser: OverridesParser) -> list[list[Override]]:
    """Return the jobs as Hydra's basic sweeper makes them: all combinations, in its order."""
    choices: dict[str, list[str]] = {}
    for item in items:
        key = item.get_key_element()
        choices[key] = [_line(item)]
        if item.is_sweep_override():
            values = islice(item.sweep_string_iterator(), MOST_JOBS + 1)
            choices[key] = [f"{key}={value}" for value in values]
        if not choices[key]:
            raise UserError(f"{_line(item)} gives no value at all")
    number = prod(map(len, choices.values()))
    if number > MOST_JOBS:
        raise UserError(
            f"the sweep has {number:,} combinations or more, and {MOST_JOBS:,} is the most: "
            "sweep fewer values"
        )
    parsed = {line: parser.parse_override(line) for lines in choices.values() for line in lines}
    return [[parsed[line] for line in lines] for lines in product(*choices.values())]


class _Builder:
    """Composes combinations beside what was typed for Hydra itself."""

    def __init__(self, composer: Composer, hydra: tuple[str, ...]) -> None:
        self.composer, self.hydra = composer, hydra
        self.groups = composer.options

    def compose(self, items: Iterable[Override]) -> DictConfig:
        """Return the config of the options chosen; refuse a part (model/tokenizer) that the model lacks."""
        chosen = [item for item in items if item.key_or_group in self.groups]
        parts = [item for item in chosen if "/" in item.key_or_group]
        whole = (_line(item) for item in chosen if item not in parts)
        choices = self.composer.compose((*self.hydra, *whole)).hydra.runtime.choices
        for item in parts:
            group, _, name = item.key_or_group.rpartition("/")
            if item.key_or_group not in choices:
                raise UserError(
                    f"{_line(item)}: {group}={choices[group]} has no {name} to choose; leave it out, or take "
                    f"another {group}"
                )
        config = self.composer.compose((*self.hydra, *map(_line, chosen)))
        for item in parts:
            group, _, name = item.key_or_group.rpartition("/")
            file = OmegaConf.load(CONF / item.key_or_group / f"{item.value()}.yaml")
            foreign = [str(key) for key in config[group][name] if key not in file]
            if foreign and "defaults" not in file:
                raise UserError(
                    f"{_line(item)}: {group}={choices[group]} is made for another {name} and sets its "
                    f"{', '.join(foreign)}, which this one does not have; take another {group}"
                )
        return config

    def set_values(self, items: Sequence[Override]) -> tuple[DictConfig, dict[str, str]]:
        """Return the config with Hydra's own node, and for the keys that cannot be set, why."""
        config = self.compose(items).copy()
        known = unresolved(config)
        problems: dict[str, str] = {}
        for item in items:
            key, adds = item.key_or_group, item.is_add() or item.is_force_add()
            if key in self.groups:
                continue
            if not adds and not keys.has(known, key):
                problems[key] = self._unknown(_line(item), key, known, config.hydra.runtime.choices)
                continue
            try:
                OmegaConf.update(config, key, item.value(), merge=True, force_add=adds)
            except OmegaConfBaseException as error:
                problems[key] = f"{_line(item)}: {reason(error)}"
        return config, problems

    def build(self, job: Sequence[Override], swept: tuple[str, ...]) -> Combination:
        """Return one combination, with what is wrong in it."""
        lines = tuple(map(_line, job))
        try:
            config, problems = self.set_values(job)
        except UserError as error:
            return Combination(lines, swept, {}, (str(error),))
        choices = {k: v for k, v in config.hydra.runtime.choices.items() if not k.startswith("hydra/")}
        for group in SEVERAL:  # Hydra says nothing of a choice of several
            choices.setdefault(group, f"[{','.join(config[group])}]")
        composed = base = unresolved(self.compose(job))
        experiment = choices.get("experiment")
        if experiment is not None:  # a recipe is checked against what the files say without it
            others = (f"{group}={option}" for group, option in choices.items() if group != "experiment")
            base = unresolved(self.composer.compose((*self.hydra, *others)))
        plain: dict[str, Any] = {}
        try:
            plain = to_plain(config)
            idle = {item.key_or_group: said for item in job if (said := _has_no_effect(item, plain))}
            problems = idle | find_problems(plain, base) | problems
            # What only follows another key (model.image_size the data's) is wrong where that key is.
            written = unresolved(config)
            same = {key for key in problems if str(keys.get(written, key))[2:-1] in problems}
            problems = {key: said for key, said in problems.items() if key not in same}
        except UserError as error:
            problems[""] = str(error)
        typed = {item.key_or_group for item in job}
        sentences = tuple(
            f"{sentence} (set by experiment={experiment})"
            if key not in typed and keys.get(composed, key) != keys.get(base, key)
            else sentence
            for key, sentence in problems.items()
        )
        return Combination(lines, swept, choices, sentences, plain)

    def _unknown(self, line: str, key: str, known: dict[str, Any], choices: dict[str, str]) -> str:
        """Return what to say of a key that is not in the config of these choices."""
        group, _, rest = key.partition(".")
        part, _, below = rest.partition(".")
        if below and f"{group}/{part}" in choices:
            group, rest = f"{group}/{part}", below
        if is_open(key) and keys.has(known, OPEN_NODES[0]):
            return f"{line}: a key of your own under {OPEN_NODES[0]} takes a plus: +{line}"
        inside = bool(rest) and group in choices
        place = f"{group}={choices[group]} has no key '{rest}'" if inside else "no such key"
        files = {name: CONF / group / f"{name}.yaml" for name in self.groups[group]} if inside else {}
        # The key itself, or where its node is another option's, that node.
        sought = rest if keys.has(known, key.rpartition(".")[0]) else rest.rpartition(".")[0]
        having = [f"{group}={name}" for name, file in files.items() if keys.has(_read(file), sought)]
        hint = did_you_mean(having or suggest_key(key, keys.walk(known), self.groups))
        if not hint:
            node = keys.get(known, group.replace("/", ".")) if inside else known
            hint = f" the keys there are {names(node)}"
        return f"{key}: {place};{hint}"


def _read_hydra_node(config: DictConfig, lines: list[str], kind: str) -> tuple[Path, dict[str, str]]:
    """Return the folder of the run or of the sweep (``kind``), and the variables to set for it.

    Raises:
        UserError: an interpolation leads nowhere.
    """
    node = config.hydra
    with open_dict(node):
        node.overrides.task = lines
        node.job.override_dirname = ",".join(sorted(lines))
    try:
        environment = OmegaConf.to_container(node.job.env_set, resolve=True)
        assert isinstance(environment, dict)
        return Path(node[kind].dir), {str(name): str(value) for name, value in environment.items()}
    except OmegaConfBaseException as error:
        raise UserError(f"hydra.{kind}.dir cannot be resolved: {reason(error)}") from error


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
