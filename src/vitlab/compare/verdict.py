"""Better, or luck? What a study says of each group, what it could have told, and what would tell more."""

import math
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vitlab.compare.groups import Comparison, Group, few
from vitlab.compare.statistics import (
    FEWEST,
    MOST_SEEDS,
    OPEN,
    TOO_FEW,
    WORDS,
    correct_best,
    judge,
    needed_pairs,
    smallest_effect,
)
from vitlab.config.labels import own_overrides

MOST_COMMANDS = 3  # on the screen


@dataclass(frozen=True)
class Verdict:
    """One group against the baseline; accuracies as fractions, None where unknown.

    Attributes:
        n: seeds that both have.
        difference, low, high: the mean over these seeds, and its 95 % interval.
        p, p_adjusted: of the sign-flip test in the direction seen; after Holm's correction.
        verdict: one of ``WORDS``.
    """

    group: str
    baseline: str
    n: int = 0
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    p_adjusted: float | None = None
    verdict: str = TOO_FEW


@dataclass(frozen=True)
class Noise:
    """What chance does to the figures of a study; accuracies as fractions, None if unknown.

    Attributes:
        seed_std: the standard deviation of the baseline's seeds, on the same images.
        image_std: how far other images of the same number would move an accuracy (binomial).
        difference_std: the standard deviation of a difference between two runs of one seed, pooled over the
            groups of five and more.
        smallest_told: the smallest difference that the study finds 4 times in 5.
        detect: the difference asked for.
        seeds_needed: of each group, to find it 4 times in 5; None where more than 100 are.
        commands: that train the seeds that are lacking, of what is not decided.
    """

    seed_std: float | None
    image_std: float | None
    difference_std: float | None
    smallest_told: float | None
    detect: float
    seeds_needed: int | None
    commands: list[str]


@dataclass(frozen=True)
class Finding:
    """The verdicts of a study and what stands behind them.

    Attributes:
        split: by which accuracy: ``val``, or ``test`` where nothing was held out.
        margin: within which groups count as equal.
        best, corrected: the highest mean, and without the luck of being the highest.
    """

    split: str
    margin: float
    comparisons: list[Verdict]
    noise: Noise | None
    best: str | None
    corrected: float | None


def find(comparison: Comparison, margin: float, detect: float) -> Finding:
    """Judge every group against the baseline.

    Args:
        margin, detect: differences of accuracy, as fractions.
    """
    split, base = comparison.split, comparison.baseline
    rivals = comparison.rivals
    judged = {}
    if paired := [group for group in rivals if group.difference.get(split)]:
        found = [group.difference[split] for group in paired]
        for group, difference, said in zip(paired, found, judge(found, margin), strict=True):  # type: ignore[arg-type]
            assert difference
            low, high = difference.interval or (None, None)
            numbers = (difference.n, difference.mean, low, high, said.p, said.p_adjusted, said.verdict)
            judged[group.name] = numbers
    verdicts = [Verdict(g.name, base.name, *judged.get(g.name, ())) for g in rivals if base]
    noise = _measure_noise(comparison, verdicts, detect) if base else None
    measured = [group for group in [base, *rivals] if group and group.by_seed(split)]
    measured.sort(key=lambda group: -group.mean(split))
    chosen = correct_best([group.by_seed(split) for group in measured]) if len(measured) > 1 else None
    return Finding(split, margin, verdicts, noise, measured[0].name if measured else None, chosen)


def _measure_noise(comparison: Comparison, verdicts: Sequence[Verdict], detect: float) -> Noise:
    base, split = comparison.baseline, comparison.split
    assert base
    own = base.spread(split)
    seed_std = own.std if own else None
    images = base.runs[0].images.get(split)
    image_std = math.sqrt(own.mean * (1 - own.mean) / images) if own and images else None
    found = [d for group in comparison.rivals if (d := group.difference.get(split)) and d.n >= FEWEST]
    std = effect = None
    needed: int | None = FEWEST
    if found:
        free = [d.n - 1 for d in found]
        std = math.sqrt(sum(n * (d.std or 0) ** 2 for n, d in zip(free, found, strict=True)) / sum(free))
        effect = smallest_effect(min(d.n for d in found), len(verdicts))
        needed = needed_pairs(detect / max(std, 1e-6), len(verdicts))
    commands = [*_commands(comparison, verdicts, needed)] if needed else []
    told = None if effect is None or std is None else effect * std
    return Noise(seed_std, image_std, std, told, detect, needed, commands)


def _commands(comparison: Comparison, verdicts: Sequence[Verdict], number: int) -> Iterator[str]:
    """Yield commands that train what is lacking of ``number`` seeds, of the groups that are not decided."""
    base = comparison.baseline
    assert base
    names = {v.group for v in verdicts if v.verdict in (OPEN, TOO_FEW)}
    groups = [group for group in comparison.groups if names and (group is base or group.name in names)]
    seeds = sorted({seed for group in groups for seed in group.by_seed(comparison.split)}, key=_numeric)
    unused = (str(n) for n in range(10**6) if str(n) not in seeds)
    wanted = [*seeds, *(next(unused) for _ in range(number - len(seeds)))][:number]
    lacking = {g.name: [s for s in wanted if s not in g.by_seed(comparison.split)] for g in groups}
    lacking = {name: seeds for name, seeds in lacking.items() if seeds}
    sweeps = {group.runs[0].sweep_command for group in comparison.groups}
    (shared,) = sweeps if len(sweeps) == 1 else ((),)
    if shared and len(lacking) == len(comparison.groups) and len({*map(tuple, lacking.values())}) == 1:
        yield _command(shared, next(iter(lacking.values())), comparison.groups[0])
        return
    for group in groups:
        if group.name in lacking:
            yield _command(group.runs[0].overrides, lacking[group.name], group)


def _command(overrides: Sequence[str], seeds: Sequence[str], group: Group) -> str:
    typed = [o for o in own_overrides(overrides) if o != "-m" and not o.startswith("seed=")]
    sweep = [f"sweep.resume={group.runs[0].path.parent}"] if group.runs[0].sweep_command else []
    return shlex.join(["python", "train.py", "-m", *typed, f"seed={','.join(seeds)}", *sweep])


def _numeric(seed: str) -> tuple[int, str]:
    return (int(seed), "") if seed.isdigit() else (10**9, seed)


def tell(comparison: Comparison, finding: Finding, *, commands: bool = True) -> Iterator[str]:
    """Yield the verdict in lines; those that begin with a space belong to the one above.

    Args:
        commands: that train what is lacking; they name folders of this machine.
    """
    base, noise = comparison.baseline, finding.noise
    if base is None or noise is None:
        return
    chosen = "" if comparison.asked else ", the first of the study (--baseline chooses another)"
    yield f"By {finding.split} accuracy, against {base.name}{chosen}:"
    for word in WORDS:
        found = [v for v in finding.comparisons if v.verdict == word]
        if found:
            said = f"equal within ±{100 * finding.margin:g} points" if word == "equal" else word
            yield f"  {said}: {few(map(_describe, found), 3)}"
    yield from _tell_noise(finding.split, noise, commands)
    if finding.corrected is not None and (number := len(finding.comparisons) + 1) > 2:
        best = max(group.mean(finding.split) for group in [base, *comparison.rivals])
        yield (
            f"{number} groups were compared on the same images. The highest, {finding.best}, has "
            f"{100 * best:.2f} %; {100 * finding.corrected:.2f} % corrected for having been chosen."
        )


def _describe(found: Verdict) -> str:
    if found.difference is None:
        return f"{found.group} (no seed in common)"
    interval = f" [{100 * found.low:+.2f}, {100 * found.high:+.2f}]" if found.low is not None else ""  # type: ignore[operator]
    p = f", p {found.p_adjusted:.2g}" if found.verdict != TOO_FEW else f", n = {found.n}"
    return f"{found.group} ({100 * found.difference:+.2f}{interval}{p})"


def _tell_noise(split: str, noise: Noise, commands: bool) -> Iterator[str]:
    parts = []
    if noise.seed_std is not None:
        parts.append(f"another seed moves the baseline by ±{100 * noise.seed_std:.2f} points")
    if noise.image_std is not None:
        parts.append(f"other {split} images would move it by ±{100 * noise.image_std:.2f}")
    if noise.smallest_told is not None:
        parts.append(f"differences of {100 * noise.smallest_told:.2f} and more are found 4 times in 5")
    if parts:
        yield f"Noise: {'; '.join(parts)}."
    takes = f"To find {100 * noise.detect:g} points 4 times in 5 takes"
    if noise.seeds_needed is None:
        yield f"{takes} more than {MOST_SEEDS} seeds a group."
    elif noise.difference_std is None:
        yield f"{FEWEST} seeds a group are the fewest that can tell anything."
    else:
        yield f"{takes} {noise.seeds_needed} seeds a group."
    if commands:
        yield from (f"  {command}" for command in noise.commands[:MOST_COMMANDS])
        if (more := len(noise.commands) - MOST_COMMANDS) > 0:
            yield f"  and {more} more commands: --format json"
