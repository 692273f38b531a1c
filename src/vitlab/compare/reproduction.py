"""New runs against a claim: which it takes, whether they may be compared with it, and whether it holds."""

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vitlab.compare.claims import (
    DIR,
    UNKNOWN,
    Claim,
    Figure,
    Protocol,
    get_claimed,
    get_metric,
)
from vitlab.compare.groups import few
from vitlab.compare.read import FROM_FILES, Run, effective, flatten, read_runs, text
from vitlab.compare.statistics import LEVEL, Spread, contrast, spread
from vitlab.compare.table import NONE, accuracy
from vitlab.config import combinations
from vitlab.config.keys import under
from vitlab.core.errors import UserError
from vitlab.core.run_folder import State
from vitlab.core.suggest import suggest
from vitlab.core.untrusted import to_yaml

RUNS = Path("outputs/claims")
LONGEST = 40  # characters of a folder's name
HOLDS, FAILS, OTHER = "reproduced", "not reproduced", "not comparable"
UNMEASURED, UNCHECKED = "not yet measured", "not checked"
# Keys that say which images there are; another value of any other key is another protocol.
IMAGES = (
    *("data.kind", "data.labels", "data.image_size", "data.channels"),
    *("data.num_train", "data.num_test", "data.seed"),
)
TESTED = {"best": "hold-out", "last": "last epoch"}  # the first word of a run's ``tested`` → selection
ROUNDING = 1e-9
HEADS = (
    *("figure", "accuracy of", "claimed, %", "measured, %"),
    *("difference, points", "tolerance", "verdict"),
)
WORDS = ("figure", "accuracy of", "verdict")  # columns that hold no numbers


@dataclass(frozen=True)
class Arm:
    """Runs that differ in the seed alone, and the figures that are of them.

    Attributes:
        words: the overrides, without a seed.
        folder: of the sweep. Its name tells settings apart, so that runs of others are never taken for these.
        config: of the first seed, as composed.
        expected: what the claim's own command and its ``settings`` say, as `Run.config` does.
    """

    figures: list[Figure]
    words: tuple[str, ...]
    folder: Path
    config: Mapping[str, Any]
    expected: Mapping[str, str]

    def read(self) -> list[Run]:
        """Return the runs that there are, whatever became of them."""
        return read_runs([self.folder]) if any(self.folder.glob("*/config.yaml")) else []

    def planned(self) -> Run:
        """Return what is known of a run before it is trained."""
        config = effective(dict(flatten(self.config)))
        return Run(self.folder, self.folder.name, State.WAITING, config=config)

    def missing(self, seeds: Sequence[int]) -> list[int]:
        """Return those of the seeds that no finished run has."""
        done = {run.seed for run in self.read() if run.state == State.FINISHED}
        return [seed for seed in seeds if str(seed) not in done]


@dataclass(frozen=True)
class Outcome:
    """What became of one figure of a claim; accuracies and differences as fractions, None where unknown.

    Attributes:
        low, high: the 95 % interval of the difference.
        p_equal: of two one-sided tests against a difference beyond the tolerance.
        verdict: reproduced, not reproduced, not comparable, not yet measured, or not checked.
        reason: what makes it that, in a sentence.
    """

    name: str
    metric: str
    verdict: str
    reason: str
    claimed: Spread | None
    measured: Spread | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    tolerance: float | None = None
    p_equal: float | None = None


def plan(claim: Claim, typed: Sequence[str], seeds: Sequence[int]) -> list[Arm]:
    """Return the runs that a claim's figures are of, composed and checked.

    Args:
        typed: overrides of the data.
        seeds: to train.

    Raises:
        UserError: they cannot be trained so.
    """
    arms: dict[tuple[str, ...], list[Figure]] = {}
    for figure in claim.record["figures"]:
        if "command" not in figure:
            arms.setdefault(tuple(figure.get("overrides", ())), []).append(figure)
    return [_plan_arm(claim, figures, typed, seeds) for figures in arms.values()]


def _plan_arm(claim: Claim, figures: list[Figure], typed: Sequence[str], seeds: Sequence[int]) -> Arm:
    own = [*claim.overrides, *figures[0].get("overrides", ())]
    words = _merge(own, typed)
    if unknown := [word for word in words if word.partition("=")[2] == DIR]:
        key = unknown[0].partition("=")[0]
        raise UserError(
            f"{key} is needed, the folder of {claim.record['data']['label']}: python reproduce.py "
            f"{claim.folder} {key}=…"
        )
    config, effect = _compose(words, seeds[0])
    moved = all(word.startswith("data.root=") for word in typed)  # which is no difference
    expected = dict(effect) if moved else _compose(own, seeds[0])[1]
    for key, value in claim.record["settings"].items():
        if key not in expected:
            raise UserError(
                f"{claim.folder}: settings: {key}: its runs have no such key{suggest(key, expected)}."
            )
        expected[key] = text(value)
    by_place = effect["data.kind"] in FROM_FILES  # image files in another folder are other ones
    place = str(Path(str(config["data"]["root"])).expanduser().resolve()) if by_place else ""
    mark = hashlib.sha256(repr((sorted(effect.items()), place)).encode()).hexdigest()[:8]
    folder = RUNS / _name(claim.folder.resolve().name) / f"{_name(figures[0]['name'])}_{mark}"
    return Arm(figures, tuple(words), folder, config, expected)


def _name(words: str) -> str:
    """Return words as a folder's name that needs no quotes in an override."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", words)[:LONGEST]


def _merge(own: Sequence[str], typed: Sequence[str]) -> list[str]:
    """Return a command's overrides with those that were typed in their places."""
    words = {word.partition("=")[0].lstrip("+"): word for word in (*own, *typed)}
    other = any(word.startswith("data=") for word in typed)  # whose folder, if it has one, is typed too
    return [word for word in words.values() if not (other and word.partition("=")[2] == DIR)]


def _compose(words: Sequence[str], seed: int) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the config of a run, and what of it can change a result, as `Run.config` has it."""
    record = combinations([*words, f"seed={seed}"], True)[0].record
    return record, effective(dict(flatten(record)))


def find_deviations(claim: Claim, figure: Figure, arm: Arm, run: Run) -> str:
    """Return why a run's accuracy may not be compared with a claimed one; empty where it may.

    What a run does not say of itself (one that is only planned) is not held against it.
    """
    published = figure["mean"] is None
    protocol = claim.record["source"].get("protocol") if published else claim.record["protocol"]
    data: list[str] = []
    ways: list[str] = []
    for key in dict.fromkeys((*arm.expected, *run.config)):
        theirs, ours = (table.get(key, "not there") for table in (arm.expected, run.config))
        if theirs != ours and key != "data.root":
            (data if under(key, IMAGES) else ways).append(f"{key} is {ours}, in the claim {theirs}")
    if run.config.get("data.kind") != arm.expected.get("data.kind"):
        data, ways = data[:1], [way for way in ways if not way.startswith("data.")]
    known = claim.record["data"].get("fingerprint")
    if known and run.fingerprint and run.fingerprint != known:
        data.append("the image files have other names or classes")
    ways += _find_other_protocol(protocol, run) if protocol else []
    said = [f"other {what}: {few(found, 3)}" for what, found in (("data", data), ("protocol", ways)) if found]
    return "; ".join(said)


def _find_other_protocol(protocol: Protocol, run: Run) -> Iterator[str]:
    for part, verb in (("train", "trained on"), ("val", "validated on"), ("test", "tested on")):
        found, claimed = run.images.get(part), protocol[part]  # type: ignore[literal-required]
        if found is not None and found != claimed:
            yield f"{verb} {found:,.0f} images, in the claim {claimed:,}"
    selection = TESTED.get(run.tested.partition(" ")[0])
    if selection and protocol["selection"] not in (None, selection):
        yield f"selection is {selection}, in the claim {protocol['selection']}"


def judge(claim: Claim, arms: Sequence[Arm], seeds: Sequence[int]) -> list[Outcome]:
    """Hold the finished runs against every figure of a claim.

    Raises:
        UserError: a run has not what a figure is of.
    """
    found = {}
    for arm in arms:
        runs = [r for r in arm.read() if r.state == State.FINISHED and r.seed in map(str, seeds)]
        for figure in arm.figures:
            measured = _measure(claim, figure, runs)
            deviations = filter(None, (find_deviations(claim, figure, arm, run) for run in runs))
            found[figure["name"]] = _judge(figure, measured, next(deviations, ""))
    for figure in claim.record["figures"]:
        if "command" in figure:
            reason = f"made by another command: {figure['command']}"
            found[figure["name"]] = Outcome(
                figure["name"], get_metric(figure), UNCHECKED, reason, get_claimed(figure)
            )
    return [found[figure["name"]] for figure in claim.record["figures"]]


def _measure(claim: Claim, figure: Figure, runs: Sequence[Run]) -> Spread:
    metric, values = get_metric(figure), dict[str, list[float]]()
    for run in runs:
        if metric not in run.metrics:
            raise UserError(
                f"{claim.folder}: {figure['name']}: {run.path} has no {metric}{suggest(metric, run.metrics)}."
            )
        values.setdefault(run.seed, []).append(run.metrics[metric])
    measured = spread([fmean(same) for same in values.values()])
    assert measured
    return measured


def _judge(figure: Figure, measured: Spread, deviations: str) -> Outcome:
    claimed, metric = get_claimed(figure), get_metric(figure)
    if claimed is None:
        return Outcome(figure["name"], metric, UNMEASURED, "nothing to compare with", None, measured)
    tolerance = (figure.get("tolerance") or 0) / 100
    difference = contrast(measured, claimed)
    low, high = difference.interval or (None, None)
    p_equal = difference.p_equal(tolerance)
    numbers = (claimed, measured, difference.mean, low, high, tolerance, p_equal)
    if deviations:
        return Outcome(figure["name"], metric, OTHER, deviations, *numbers)
    within = abs(difference.mean) <= tolerance + ROUNDING
    if low is None or high is None:
        why = "neither side has a spread over seeds, so what chance does is not known"
    elif within and p_equal <= LEVEL:
        why = f"a difference beyond it is excluded (p {p_equal:.2g})"
    elif within:
        why = "the 95 % interval goes beyond it, which more seeds could exclude"
    elif low <= tolerance and high >= -tolerance:
        why = "the 95 % interval reaches within it: chance may do, more seeds would tell"
    else:
        why = "more than chance explains"
    allowed = f"±{100 * tolerance:g}"
    how = (
        f"within {allowed} points" if within else f"by {100 * difference.mean:+.2f} points, beyond {allowed}"
    )
    return Outcome(figure["name"], metric, HOLDS if within else FAILS, f"{how}; {why}", *numbers)


def sum_up(outcomes: Iterable[Outcome]) -> str:
    """Return the verdict on a whole claim: the worst of its figures that could be held against runs."""
    words = {outcome.verdict for outcome in outcomes}
    return next(word for word in (FAILS, OTHER, HOLDS, UNMEASURED, UNCHECKED) if word in words)


def as_json(claim: Claim, arms: Sequence[Arm], outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return everything as plain values."""
    return {
        "claim": claim.record["claim"],
        "study": str(claim.folder),
        "verdict": sum_up(outcomes),
        "figures": [asdict(outcome) for outcome in outcomes],
        "runs": [str(arm.folder) for arm in arms],
    }


def _make_row(outcome: Outcome) -> Iterator[str]:
    yield outcome.name
    yield outcome.metric.partition("/")[0]
    yield accuracy(outcome.claimed)
    yield accuracy(outcome.measured)
    if outcome.difference is None or outcome.tolerance is None:
        yield from (NONE, NONE)
    else:
        known = outcome.low is not None and outcome.high is not None
        interval = f" [{100 * outcome.low:+.2f}, {100 * outcome.high:+.2f}]" if known else ""  # type: ignore[operator]
        yield f"{100 * outcome.difference:+.2f}{interval}"
        yield f"±{100 * outcome.tolerance:g}"
    yield outcome.verdict


def show(console: Console, claim: Claim, arms: Sequence[Arm], outcomes: Sequence[Outcome]) -> None:
    """Print the table, what is behind each verdict, and the verdict."""
    record = claim.record
    console.print(Text(f"{claim.folder}: {record['claim']}"), style="bold")
    table = Table(header_style="bold cyan")
    for head in HEADS:
        table.add_column(head, justify="left" if head in WORDS else "right")
    for outcome in outcomes:
        table.add_row(*map(Text, _make_row(outcome)))
    console.print(table, soft_wrap=False)
    for outcome in outcomes:
        console.print(Text(f"{outcome.name}: {outcome.verdict}, {outcome.reason}"))
    source, commit = record["source"], record["commit"]
    by = f"{source['by']}; {record['data']['label']}; hardware {record['hardware'] or UNKNOWN}"
    console.print(Text(f"claimed: {by}; commit {commit[:8] if commit else UNKNOWN}"))
    if note := source.get("note"):
        console.print(Text(f"  {note}"))
    runs = [run for arm in arms for run in arm.read() if run.state == State.FINISHED]
    for device, state in dict.fromkeys((run.device, run.commit[:8]) for run in runs):
        where = os.path.commonpath([arm.folder for arm in arms])
        console.print(Text(f"measured: {device or UNKNOWN}; commit {state or UNKNOWN}; {where}"))
    for figure, outcome in zip(record["figures"], outcomes, strict=True):
        if figure["mean"] is None and (found := outcome.measured):
            sd = None if found.std is None else round(100 * found.std, 2)
            new = {"name": outcome.name, "mean": round(100 * found.mean, 2), "sd": sd, "n": found.n}
            console.print(Text(f"as a figure of ours, for {claim.folder}:\n{to_yaml(new).decode().rstrip()}"))
    console.print(Text(sum_up(outcomes)), style="bold")
