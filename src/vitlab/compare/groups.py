"""Runs that differ in nothing but the seed are a group: what it is called, and its statistics."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, mean
from typing import Any

from vitlab.compare.read import COSTS, FROM_FILES, STATES, Run
from vitlab.compare.statistics import Difference, Spread, paired, spread
from vitlab.config.labels import shorten_keys
from vitlab.core.errors import UserError
from vitlab.core.run_folder import State
from vitlab.core.suggest import suggest

SPLITS = {"val": "val/accuracy", "test": "test/accuracy"}
UNNAMED = ("experiment", "logger", "callbacks", "trainer")  # choices that say little of what was trained
MOST_NOTES = 3  # of one kind, before they are one
MOST_KEYS = 3  # with more of them a name leaves out what most groups share


@dataclass
class Group:
    """Runs of one configuration.

    Attributes:
        settings: dotted key or config group → value as text.
        name: what sets it apart from the other groups.
        data: on which images it was measured, where groups differ in that; else empty.
        difference: split → differences to the baseline, seed by seed.
    """

    runs: list[Run]
    settings: dict[str, str]
    name: str = ""
    data: str = ""
    difference: dict[str, Difference | None] = field(default_factory=dict)

    @property
    def finished(self) -> list[Run]:
        """The runs that have finished."""
        return [run for run in self.runs if run.state == State.FINISHED]

    def by_seed(self, split: str) -> dict[str, float]:
        """Return seed → accuracy of the finished runs.

        A seed that was run twice counts once, with the mean: a repetition is no independent value.
        """
        values: dict[str, list[float]] = {}
        for run in self.finished:
            if (metric := SPLITS[split]) in run.metrics:
                values.setdefault(run.seed, []).append(run.metrics[metric])
        return {seed: fmean(found) for seed, found in values.items()}

    def spread(self, split: str) -> Spread | None:
        """Return mean and deviation of a split's accuracy over the seeds."""
        return spread([*self.by_seed(split).values()])

    def mean(self, split: str) -> float:
        """Return the mean of a split's accuracy over the seeds; below every other where there is none."""
        return found.mean if (found := self.spread(split)) else -1.0

    def cost(self, key: str) -> float | None:
        """Return the mean of a cost over the finished runs."""
        values = [run.cost[key] for run in self.finished if key in run.cost]
        return mean(values) if values else None


@dataclass
class Comparison:
    """Everything that the table, the figures and the page show.

    Attributes:
        groups: the highest mean hold-out accuracy first, within the same data.
        keys: that name the groups, with their short forms.
        baseline: that the others are held against; None where there are no others on the same data.
        asked: whether somebody named the baseline; else it is the group of the first run.
        all_tests: whether every group's test accuracy is shown, and not the chosen one's alone.
        notes: what a reader should know before believing the table.
    """

    title: str
    runs: list[Run]
    groups: list[Group]
    keys: dict[str, str]
    baseline: Group | None = None
    asked: bool = False
    all_tests: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def unfinished(self) -> list[Run]:
        """The runs that are not in the statistics."""
        return [run for run in self.runs if run.state != State.FINISHED]

    @property
    def several_data(self) -> bool:
        """Whether the groups were measured on different images."""
        return any(group.data for group in self.groups)

    @property
    def split(self) -> str:
        """The split that decides: validation, or test where nothing was held out."""
        return "val" if any(group.spread("val") for group in self.groups) else "test"

    @property
    def rivals(self) -> list[Group]:
        """The groups that are held against the baseline."""
        base = self.baseline
        return [g for g in self.groups if base and g is not base and g.data == base.data and g.finished]

    @property
    def tells(self) -> bool:
        """Whether differences are worth a column: somebody asked, or a group has two seeds to compare."""
        differences = (group.difference.get(self.split) for group in self.rivals)
        return self.asked or any(found and found.n > 1 for found in differences)

    def shows_test(self, group: Group) -> bool:
        """Say whether a group's test accuracy is shown: that of the group which validation chose."""
        alike = [other for other in self.groups if other.data == group.data and other.spread("val")]
        return self.all_tests or not alike or group is alike[0]


def make_comparison(
    runs: Sequence[Run], baseline: Sequence[str], title: str, *, all_tests: bool = False
) -> Comparison:
    """Group ``runs``, name and sort the groups, and take the differences to the baseline.

    Args:
        baseline: ``key=value`` of exactly one group, or its name; empty for that of the first finished run.
        all_tests: see `Comparison`.

    Raises:
        UserError: the baseline is no group, or several.
    """
    alike: dict[frozenset[tuple[str, str]], list[Run]] = {}
    for run in runs:
        if run.config:
            alike.setdefault(frozenset((run.config | run.measured_on).items()), []).append(run)
    # Of runs that agree in every value the first one's choices name the group.
    groups = [Group(m, m[0].choices | m[0].config | m[0].measured_on) for m in alike.values()]
    _label_data(groups)
    keys = _name(groups)
    first = next((group for group in groups if group.finished), None)
    # Never by test accuracy; groups without a hold-out come last.
    groups.sort(key=lambda g: (g.data, -g.mean("val"), g.name))
    comparison = Comparison(title, [*runs], groups, keys, asked=bool(baseline), all_tests=all_tests)
    comparison.baseline = _find(comparison, baseline) if baseline else first
    for group in comparison.rivals:
        assert comparison.baseline
        base = comparison.baseline
        group.difference = {s: paired(group.by_seed(s), base.by_seed(s)) for s in SPLITS}
    if not comparison.rivals and not comparison.asked:
        comparison.baseline = None
    comparison.notes = [*_notes(comparison)]
    return comparison


def count_states(runs: Iterable[Run]) -> str:
    """Return how many runs are in which state, such as ``2 finished, 1 failed``."""
    counts = Counter(run.state for run in runs)
    return ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])


def differing(tables: Sequence[Mapping[str, str]]) -> list[str]:
    """Return the keys whose values are not the same in all ``tables``; a missing one is a value too."""
    keys = dict.fromkeys(key for table in tables for key in table)
    return [key for key in keys if len({table.get(key) for table in tables}) > 1]


def commonest(tables: Sequence[Mapping[str, str]], key: str) -> str | None:
    """Return the value that most tables have; the first of equals."""
    return Counter(table.get(key) for table in tables).most_common(1)[0][0]


def _label_data(groups: Sequence[Group]) -> None:
    """Label each group with the images it was measured on, if they are not the same for all."""
    keys = differing([group.runs[0].measured_on for group in groups])
    for group in groups if keys else ():
        table = group.runs[0].measured_on
        kind = table.get("data.kind", "?")
        name = table["data.root"] if kind in FROM_FILES else kind
        more = [k for k in keys if k in table and k not in ("data.kind", "data.root")]
        group.data = " ".join([name, *(f"{k.rpartition('.')[2]}={table[k]}" for k in more)])


def _name(groups: Sequence[Group]) -> dict[str, str]:
    """Name the groups by what sets them apart; return the keys that do, with their short forms."""
    tables = [group.settings for group in groups]

    def parts(keys: Sequence[str]) -> int:
        return len({tuple(table.get(key) for key in keys) for table in tables})

    differ = differing(tables)
    asked = dict.fromkeys(key for group in groups for run in group.runs for key in run.asked)
    keys = [key for key in asked if key in differ]
    # What nobody asked for in so many words, such as what a recipe sets: only as much as tells groups apart.
    choices = {key for group in groups for key in group.runs[0].choices}
    rest = (key for key in differ if key not in asked)
    for key in sorted(rest, key=lambda k: (k in UNNAMED, k not in choices)):
        if parts([*keys, key]) > parts(keys):
            keys.append(key)
    short = shorten_keys(keys)
    shared = {key: commonest(tables, key) for key in keys} if len(keys) > MOST_KEYS else {}
    names = [_describe(table, short, shared) for table in tables]
    taken: Counter[str] = Counter()
    for group, name in zip(groups, names, strict=True):
        unique = name if names.count(name) == 1 else _describe(group.settings, short, {})
        label = unique or ("base" if keys else group.runs[0].model)
        taken[label] += 1
        group.name = label if taken[label] == 1 else f"{label} ({taken[label]})"
    return short


def _describe(table: Mapping[str, str], short: Mapping[str, str], shared: Mapping[str, str | None]) -> str:
    """Return ``key=value …`` without what is as in ``shared``."""
    told = [key for key in short if key in table and table[key] != shared.get(key)]
    return " ".join(f"{short[key]}={table[key]}" for key in told)


def _find(comparison: Comparison, asked: Sequence[str]) -> Group:
    """Return the group that has this name or these ``key=value`` pairs."""
    said = " ".join(asked)
    groups = comparison.groups
    names = {group.name: group for group in groups}
    if said in names:
        return names[said]
    settings = {key for group in groups for key in group.settings}
    for pair in said.split():
        name, sign, value = pair.partition("=")
        # `patch_size` means the key that sets groups apart, if there is one of that name.
        keys = [key for key, short in comparison.keys.items() if name in (key, short)]
        keys = keys or [key for key in settings if name in (key, re.split(r"[./]", key)[-1])]
        if not sign or not keys:
            raise UserError(
                f"--baseline {said}: expected key=value or the name of a group, found {pair}"
                f"{suggest(said, names) or suggest(name, comparison.keys.values())}. Groups: {few(names)}."
            )
        groups = [group for group in groups if any(group.settings.get(key) == value for key in keys)]
    if len(groups) == 1:
        return groups[0]
    several = f"is {len(groups)} groups: {few(group.name for group in groups)}"
    found = several if groups else f"is none of {few(names)}"
    raise UserError(f"--baseline {said} {found}. Give one, by its name in quotes or by more key=value pairs.")


def few(names: Iterable[str], most: int = 8) -> str:
    """Return the first names, and how many more there are."""
    told = [*names]
    more = f" and {len(told) - most} more" if len(told) > most else ""
    return "; ".join(told[:most]) + more


def _notes(comparison: Comparison) -> Iterator[str]:
    """Yield what a reader should know before believing the table."""
    if comparison.several_data:
        yield (
            "the groups were measured on different images (column data): their accuracies do not compare, so "
            "each set of images is sorted by itself and no difference is taken between two."
        )
    twice, partly = [], []
    for group in comparison.groups:
        seeds = Counter(run.seed for run in group.finished)
        twice += [f"{group.name}: seed {seed} was run {n} times" for seed, n in seeds.items() if n > 1]
        ended_early = {State.FAILED, State.INTERRUPTED, State.PRUNED} & {run.state for run in group.runs}
        if ended_early and group.finished:
            partly.append(f"{group.name}: {count_states(group.runs)}")
    notes = {"a seed counts once, with the mean": twice, "the mean is of what finished": partly}
    for remedy, found in notes.items():
        if len(found) > MOST_NOTES:
            yield f"{len(found)} times {remedy}: {few(found, MOST_NOTES)}."
        else:
            yield from (f"{said}; {remedy}." for said in found)
    finished = [run for group in comparison.groups for run in group.finished]
    commits = dict.fromkeys(
        r.commit[:8] + "-dirty" * r.commit.endswith("-dirty") for r in finished if r.commit
    )
    if len(commits) > 1:
        yield f"the runs are of {len(commits)} states of the code: {few(commits)}."
    devices = dict.fromkeys(run.device for run in finished if run.device)
    if len(devices) > 1:
        yield f"the runs had other hardware or shares of it, so images/s do not compare: {few(devices)}."


def row(comparison: Comparison, group: Group) -> dict[str, Any]:
    """Return a group's line of leaderboard.csv: accuracies as fractions, None where unknown or not shown."""
    said: dict[str, Any] = {"group": group.name}
    said |= {short: group.settings.get(key) for key, short in comparison.keys.items()}
    if comparison.several_data:
        said["data"] = group.data
    said |= {"runs": len(group.runs), "states": count_states(group.runs)}
    for split in SPLITS:
        hidden = split == "test" and not comparison.shows_test(group)
        found = None if hidden else group.spread(split)
        said[f"{split}_accuracy_mean"] = found and found.mean
        said[f"{split}_accuracy_std"] = found and found.std
        said[f"{split}_accuracy_n"] = found.n if found else 0
        if comparison.baseline and (split == comparison.split or comparison.all_tests):
            difference = group.difference.get(split)
            low, high = (difference and difference.interval) or (None, None)
            said[f"{split}_difference_mean"] = difference and difference.mean
            said |= {f"{split}_difference_low": low, f"{split}_difference_high": high}
            said[f"{split}_difference_pairs"] = difference.n if difference else 0
    return said | {key: group.cost(key) for key in COSTS}
