"""The comparison as text: on the screen, leaderboard.csv, leaderboard.md and runs.csv."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vitlab.compare.groups import SPLITS, Comparison, Group, count_states, row
from vitlab.compare.read import COSTS, STATES, Run
from vitlab.compare.statistics import FEWEST, Difference, Spread
from vitlab.compare.verdict import Finding, tell
from vitlab.core.console import escape_markdown
from vitlab.core.files import csv_text

NONE = "–"
WIDEST = 32  # characters of a word before it is broken
MOST_GROUPS = 40  # on the screen
SHOWN = 8  # runs of a state that are named on the screen
SHOWN_COSTS = {"parameters": "parameters", "flops_per_image": "FLOPs", "images_per_second": "images/s"}
WORDS = ("group", "verdict", "data")  # columns that hold no numbers
ACCURACIES = {"val": "val accuracy, %", "test": "test accuracy, %"}
DELTAS = {"val": "Δ val, points", "test": "Δ test, points"}


class Cell(NamedTuple):
    """A cell: its words, and what to sort it by (None where there is nothing)."""

    text: str
    value: float | str | None = None


def accuracy(found: Spread | None) -> str:
    """Return percent, such as ``61.23 ± 0.42``; of one seed there is no spread."""
    if found is None:
        return NONE
    return f"{100 * found.mean:.2f}" + (f" ± {100 * found.std:.2f}" if found.std is not None else " (n = 1)")


def delta(group: Group, base: Group, split: str) -> Cell:
    """Return points and their interval, such as ``+1.20 [+0.35, +2.05]``, or why there are none."""
    if group is base:
        return Cell("baseline", 0.0)
    if group.data != base.data:
        return Cell("n/a: other data")
    if (found := group.difference.get(split)) is None:
        return Cell("n/a: no seed in common" if group.spread(split) else NONE)
    return Cell(f"{100 * found.mean:+.2f} {interval(found)}", found.mean)


def interval(found: Difference) -> str:
    """Return the interval of a difference in points, such as ``[+0.35, +2.05]``."""
    if found.interval is None:
        return "[n/a: one pair]"
    low, high = found.interval
    return f"[{100 * low:+.2f}, {100 * high:+.2f}]"


def count(value: float | None) -> str:
    """Return a number with three significant digits: ``1.45 M``."""
    if value is None:
        return NONE
    for size, sign in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= 0.9995 * size:
            return f"{value / size:.3g}{sign}"
    return f"{value:.3g}"


def leaderboard(comparison: Comparison, finding: Finding) -> dict[str, list[Cell]]:
    """Return heading → column of the table, in which each group has a cell."""
    groups, base = comparison.groups, comparison.baseline if comparison.tells else None
    columns = {"group": [Cell(group.name, group.name) for group in groups]}
    if base:
        words = {found.group: found.verdict for found in finding.comparisons} | {base.name: "baseline"}
        columns["verdict"] = [Cell(words.get(group.name, NONE), words.get(group.name)) for group in groups]
    if comparison.several_data:
        columns["data"] = [Cell(group.data, group.data) for group in groups]
    columns["seeds"] = []
    for group in groups:
        done, asked = len({run.seed for run in group.finished}), len({run.seed for run in group.runs})
        columns["seeds"].append(Cell(str(done) if done == asked else f"{done} of {asked}", done))
    for split, head in ACCURACIES.items():
        shown = [split == "val" or comparison.shows_test(group) for group in groups]
        spreads = [group.spread(split) if show else None for group, show in zip(groups, shown, strict=True)]
        columns[head] = [Cell(accuracy(found), found.mean if found else None) for found in spreads]
    if base:
        splits = [*DELTAS] if comparison.all_tests else [comparison.split]
        columns |= {DELTAS[split]: [delta(g, base, split) for g in groups] for split in splits}
    for key, head in SHOWN_COSTS.items():
        columns[head] = [Cell(count(group.cost(key)), group.cost(key)) for group in groups]
    return columns


def show(console: Console, comparison: Comparison, finding: Finding) -> None:
    """Print the verdict, the table, what is not in it and why, and the notes."""
    groups = comparison.groups
    shown = [i for i, g in enumerate(groups) if i < MOST_GROUPS or g is comparison.baseline]
    columns = {
        head: [cells[i].text for i in shown] for head, cells in leaderboard(comparison, finding).items()
    }
    narrow = {}  # how narrow each can be: headings and names break between words, numbers never
    for head, texts in columns.items():
        parts = [*head.split(), *(" ".join(texts).split() if head in WORDS else texts)]
        narrow[head] = min(WIDEST, max(map(len, parts)))
    kept = [
        head for head in columns if head != DELTAS["test"] or comparison.split == "test"
    ]  # else in leaderboard.md
    less = [head for head in (DELTAS[comparison.split], *SHOWN_COSTS.values()) if head in kept]
    while less and sum(3 + narrow[head] for head in kept) >= console.width:
        kept.remove(less.pop())
    wide = 1 + sum(3 + max(map(len, [head, *columns[head]])) for head in kept)
    table = Table(header_style="bold cyan")
    for head in kept:
        words = head in WORDS
        table.add_column(
            head,
            justify="left" if words else "right",
            overflow="fold" if words else "ellipsis",
            width=None if words or wide <= console.width else narrow[head],
            min_width=narrow[head],
        )
    for line in zip(*(columns[head] for head in kept), strict=True):
        table.add_row(*map(Text, line))
    console.print(Text(f"{comparison.title}: {tally(comparison.runs)}"), style="bold")
    for said in tell(comparison, finding):
        console.print(Text(said))
    console.print(table, soft_wrap=False)
    if more := len(groups) - len(shown):
        console.print(f"and {more} more groups, see report.html")
    if hidden := [head for head in columns if head not in kept and head != DELTAS["test"]]:
        console.print(f"too narrow a window for {', '.join(hidden)}: see leaderboard.md")
    for state in STATES:
        runs = [run for run in comparison.unfinished if run.state == state]
        if runs:
            said = f"{state}: {len(runs)} of {len(comparison.runs)} runs, not in the statistics"
            console.print(Text(said), style="yellow")
        for run in runs[:SHOWN]:
            console.print(Text(f"  {run.name}  {run.reason}".rstrip()))
        if len(runs) > SHOWN:
            console.print(f"  and {len(runs) - SHOWN} more, see report.html")
    for note in comparison.notes:
        console.print(Text(f"note: {note}"))


def tally(runs: Sequence[Run]) -> str:
    """Return ``27 runs: 24 finished, 2 failed, 1 running``."""
    return f"{len(runs)} run{'s' * (len(runs) != 1)}: {count_states(runs)}"


def leaderboard_csv(comparison: Comparison, finding: Finding) -> str:
    """Return a line for each group, with unrounded numbers (accuracies from 0 to 1)."""
    found = {said.group: said for said in finding.comparisons}
    lines = []
    for group in comparison.groups:
        said = found.get(group.name)
        judged = {key: getattr(said, key, None) for key in ("verdict", "p", "p_adjusted")}
        lines.append(row(comparison, group) | (judged if comparison.baseline else {}))
    return _csv(lines)


def runs_csv(comparison: Comparison) -> str:
    """Return a line for each run: enough to compute every mean and every interval again."""
    lines = []
    loose = [run for run in comparison.runs if not run.config]  # unreadable, or never made
    for group, runs in [*((group.name, group.runs) for group in comparison.groups), (None, loose)]:
        for run in runs:
            line: dict[str, Any] = {"group": group, "seed": run.seed, "run": run.name}
            line |= {"state": run.state, "reason": run.reason, "epochs": run.epochs}
            line |= {metric: run.metrics.get(metric) for metric in SPLITS.values()}
            line |= {key: run.cost.get(key) for key in COSTS}
            lines.append(line | {"device": run.device, "commit": run.commit})
    return _csv(lines)


def _csv(lines: Sequence[dict[str, Any]]) -> str:
    return csv_text([*lines[0]] if lines else ["group"], lines)


def leaderboard_md(comparison: Comparison, finding: Finding) -> str:
    """Return the verdict and the table as Markdown, with what a reader needs beside it."""
    columns = []
    for head, cells in leaderboard(comparison, finding).items():
        words = head in WORDS
        texts = [code(cell.text) if words and head != "verdict" else cell.text for cell in cells]
        columns.append([head, "---" if words else "---:", *texts])
    table = "\n".join(f"| {' | '.join(line)} |" for line in zip(*columns, strict=True))
    said = [tally(comparison.runs) + ".", *tell(comparison, finding, commands=False)]
    notes = [*method(comparison, finding), *comparison.notes]
    told = [("  " if line[0] == " " else "") + f"- {escape_markdown(line.strip())}\n" for line in said]
    return "".join(told) + f"\n{table}\n\n" + "".join(f"- {escape_markdown(note)}\n" for note in notes)


def method(comparison: Comparison, finding: Finding) -> list[str]:
    """Return sentences on how the numbers were computed."""
    said = [
        "Runs that differ in nothing but the seed are a group; accuracies are mean ± standard deviation "
        "(n - 1) over its finished seeds. One seed has no spread.",
        "Val accuracy is of held-out training images, the best epoch of each run, so a little optimistic; "
        "that of the first line more so, since it is the best of all lines. The table is sorted by it.",
        "Test accuracy is of the checkpoint that val accuracy chose (of the last one where nothing is held "
        "out). It selects nothing, so it is shown for the group with the highest val accuracy alone; "
        "--all-tests shows all.",
        "Parameters, FLOPs (forward pass of one image, a multiply-add is 2) and images/s (of training) are "
        "means over the finished runs.",
    ]
    if comparison.baseline:
        said += [
            f"Δ is the mean difference to {comparison.baseline.name}, seed by seed, over the seeds that both "
            "have, in points (hundredths), and in brackets its 95 % interval: BCa bootstrap, or Student's of "
            f"fewer than {FEWEST} pairs.",
            "Better and worse: the exact sign-flip test, one-sided, with Holm's correction for all "
            f"comparisons, at 5 %. Equal: two one-sided t-tests within ±{100 * finding.margin:g} points, "
            f"likewise. {FEWEST} pairs are the fewest that can tell: of four, all of one sign, p is 1/16.",
            "What is found 4 times in 5 is simulated with normal differences and the first of Holm's steps.",
        ]
    return said


def code(words: str) -> str:
    """Return words as Markdown shows code, also inside a table."""
    return "`" + words.replace("`", "'").replace("|", "\\|") + "`"
