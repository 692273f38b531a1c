"""The comparison as text: on the screen, leaderboard.csv, leaderboard.md and runs.csv."""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vitlab.compare.groups import SPLITS, Comparison, Group, row
from vitlab.compare.read import COSTS, STATES, Run
from vitlab.compare.statistics import Difference, Spread

NONE = "–"
WIDEST = 32  # characters of a word before it is broken
MOST_GROUPS = 40  # on the screen
SHOWN = 8  # runs of a state that are named on the screen
SHOWN_COSTS = {"parameters": "parameters", "flops_per_image": "FLOPs", "images_per_second": "images/s"}
WORDS = ("group", "data")  # columns that hold no numbers
ACCURACIES = {"val": "val accuracy, %", "test": "test accuracy, %"}
DELTAS = {"val": "Δ val, points", "test": "Δ test, points"}


@dataclass(frozen=True)
class Cell:
    """A cell: its words, and what to sort it by (None where there is nothing)."""

    text: str
    value: float | str | None = None


def accuracy(found: Spread | None) -> str:
    """Return percent, such as ``61.23 ± 0.42``; of one seed there is no spread."""
    if found is None:
        return NONE
    return (
        f"{100 * found.mean:.2f} ± {100 * found.std:.2f}"
        if found.std is not None
        else f"{100 * found.mean:.2f} (n = 1)"
    )


def fraction(found: Spread | None) -> str:
    """Return ``0.6123 ± 0.0042``; of one seed there is no spread."""
    if found is None:
        return NONE
    return f"{found.mean:.4f}" + (f" ± {found.std:.4f}" if found.std is not None else "")


def delta(group: Group, comparison: Comparison, split: str) -> str:
    """Return points and their interval, such as ``+1.20 [+0.35, +2.05]``, or why there are none."""
    base = comparison.baseline
    if group is base:
        return "baseline"
    if base is not None and group.data != base.data:
        return "n/a: other data"
    found = group.difference.get(split)
    if found is None:
        return "n/a: no seed in common" if group.spread(split) else NONE
    return f"{100 * found.mean:+.2f} {_interval(found)}"


def _interval(found: Difference) -> str:
    if found.low is None or found.high is None:
        return "[n/a: one pair]"
    return f"[{100 * found.low:+.2f}, {100 * found.high:+.2f}]"


def count(value: float | None) -> str:
    """Return a number with three digits that count: ``1.45 M``."""
    if value is None:
        return NONE
    for size, sign in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= 0.9995 * size:
            return f"{value / size:.3g}{sign}"
    return f"{value:.3g}"


def columns(comparison: Comparison) -> list[str]:
    """Return the headings of `cells`."""
    deltas = [*DELTAS.values()] if comparison.baseline else []
    data = ["data"] if comparison.several_data else []
    return ["group", *data, "seeds", *ACCURACIES.values(), *deltas, *SHOWN_COSTS.values()]


def cells(comparison: Comparison, group: Group) -> list[Cell]:
    """Return a group's line of the table."""
    line = [Cell(group.name, group.name)]
    if comparison.several_data:
        line.append(Cell(group.data, group.data))
    done, all_seeds = len({r.seed for r in group.finished}), len({r.seed for r in group.runs})
    line.append(Cell(str(done) if done == all_seeds else f"{done} of {all_seeds}", done))
    spreads = [group.spread(split) for split in SPLITS]
    line += [Cell(accuracy(found), found.mean if found else None) for found in spreads]
    if comparison.baseline:
        for split in SPLITS:
            found = group.difference.get(split)
            zero = 0.0 if group is comparison.baseline else None
            line.append(Cell(delta(group, comparison, split), found.mean if found else zero))
    costs = [group.cost(key) for key in SHOWN_COSTS]
    return line + [Cell(count(value), value) for value in costs]


def show(console: Console, comparison: Comparison) -> None:
    """Print the table, what is not in it and why, and the notes."""
    heads = columns(comparison)
    groups = comparison.groups[:MOST_GROUPS]
    if comparison.baseline and comparison.baseline not in groups:
        groups.append(comparison.baseline)
    lines = [cells(comparison, group) for group in groups]
    narrow, kept = _fit(heads, lines, console.width)
    wide = 1 + sum(3 + max(len(heads[i]), *(len(line[i].text) for line in lines), 0) for i in kept)
    table = Table(header_style="bold cyan")
    for index in kept:
        if heads[index] in WORDS:
            table.add_column(heads[index], min_width=narrow[index], overflow="fold")
        else:
            width = narrow[index] if wide > console.width else None
            table.add_column(heads[index], justify="right", width=width, min_width=narrow[index])
    for line in lines:
        table.add_row(*(Text(line[index].text) for index in kept))
    console.print(plain_title(comparison), style="bold")
    console.print(table, soft_wrap=False)
    if more := len(comparison.groups) - len(groups):
        console.print(f"and {more} more groups, see report.html")
    if hidden := [name for name in SHOWN_COSTS.values() if heads.index(name) not in kept]:
        console.print(f"too narrow a window for {', '.join(hidden)}: see leaderboard.md")
    for state, runs in by_state(comparison.unfinished).items():
        console.print(
            Text(f"{state}: {len(runs)} of {len(comparison.runs)} runs, not in the statistics"),
            style="yellow",
        )
        for run in runs[:SHOWN]:
            console.print(Text(f"  {run.name}  {run.reason}".rstrip()))
        if len(runs) > SHOWN:
            console.print(f"  and {len(runs) - SHOWN} more, see report.html")
    for note in comparison.notes:
        console.print(Text(f"note: {note}"))


def _fit(heads: Sequence[str], lines: Sequence[Sequence[Cell]], room: int) -> tuple[list[int], list[int]]:
    """Return how narrow each column can be, and which columns fit into ``room`` characters.

    Headings and names break between words, numbers never.
    """
    narrow = []
    for index, head in enumerate(heads):
        texts = [line[index].text for line in lines]
        parts = [*head.split(), *(" ".join(texts).split() if head in WORDS else texts)]
        narrow.append(min(WIDEST, max(map(len, parts))))
    kept = [index for index, head in enumerate(heads) if head != DELTAS["test"]]  # leaderboard.md has room
    costs = [heads.index(name) for name in SHOWN_COSTS.values()]
    while costs and sum(3 + narrow[index] for index in kept) >= room:
        kept.remove(costs.pop())
    return narrow, kept


def plain_title(comparison: Comparison) -> Text:
    """Return what is compared and how many runs are in which state."""
    return Text(f"{comparison.title}: {tally(comparison.runs)}")


def tally(runs: Sequence[Run]) -> str:
    """Return ``27 runs: 24 finished, 2 failed, 1 running``."""
    parts = by_state(runs)
    return f"{len(runs)} run{'s' * (len(runs) != 1)}: {', '.join(f'{len(r)} {s}' for s, r in parts.items())}"


def by_state(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Return state → runs, what is well first."""
    found: dict[str, list[Run]] = {state: [] for state in STATES}
    for run in runs:
        found[run.state].append(run)
    return {state: members for state, members in found.items() if members}


def leaderboard_csv(comparison: Comparison) -> str:
    """Return a line a group, with numbers as they are (accuracies from 0 to 1)."""
    return _csv([row(comparison, group) for group in comparison.groups])


def runs_csv(comparison: Comparison) -> str:
    """Return a line a run: what every mean and every interval can be computed from again."""
    lines = []
    for group in [*comparison.groups, None]:
        for run in group.runs if group else comparison.loose:
            line: dict[str, Any] = {"group": group.name if group else None, "seed": run.seed, "run": run.name}
            line |= {"state": run.state, "reason": run.reason, "epochs": run.epochs}
            line |= {metric: run.metrics.get(metric) for metric in SPLITS.values()}
            line |= {key: run.cost.get(key) for key in COSTS}
            lines.append(line | {"device": run.device, "commit": run.commit})
    return _csv(lines)


def _csv(lines: Sequence[dict[str, Any]]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, [*lines[0]] if lines else ["group"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return out.getvalue()


def leaderboard_md(comparison: Comparison) -> str:
    """Return the table as Markdown, with what a reader needs beside it."""
    heads = columns(comparison)
    lines = [heads, ["---" if h in WORDS else "---:" for h in heads]]
    for group in comparison.groups:
        line = [cell.text for cell in cells(comparison, group)]
        words = 2 if comparison.several_data else 1
        lines.append([*map(_code, line[:words]), *line[words:]])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    notes = "\n".join(
        f"- {_escape(note)}"
        for note in [tally(comparison.runs) + ".", *method(comparison), *comparison.notes]
    )
    return f"{table}\n\n{notes}\n"


def method(comparison: Comparison) -> list[str]:
    """Say how the numbers came about."""
    said = [
        "Runs that differ in nothing but the seed are a group; accuracies are mean ± standard deviation "
        "(n - 1) over its finished seeds. One seed has no spread.",
        "Val accuracy is of held-out training images, the best epoch of each run, so a little optimistic; "
        "that of the first line more so, since it is the best of all lines. The table is sorted by it.",
        "Test accuracy is of the checkpoint that val accuracy chose (of the last one where nothing is held "
        "out), and selects nothing.",
        "Parameters, FLOPs (forward pass of one image, a multiply-add is 2) and images/s (of training) are "
        "means over the finished runs.",
    ]
    if comparison.baseline:
        said.append(
            f"Δ is the mean difference to {comparison.baseline.name}, seed by seed, over the seeds that both "
            "have, in points (hundredths), and in brackets Student's 95 % interval of that mean. One such "
            "interval in twenty misses by chance."
        )
    return said


def _code(words: str) -> str:
    return "`" + words.replace("`", "'").replace("|", "\\|") + "`"


def _escape(words: str) -> str:
    for sign in "\\`*_[]<>|":
        words = words.replace(sign, f"\\{sign}")
    return words
