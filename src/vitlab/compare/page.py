"""report.html: everything of a comparison on one page that needs no network."""

import os
from base64 import b64encode
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from itertools import groupby
from pathlib import Path
from string import Template
from urllib.parse import quote

from vitlab.compare.figures import Picture
from vitlab.compare.groups import SPLITS, Comparison, Group, commonest, count_states, differing
from vitlab.compare.read import Run
from vitlab.compare.table import ACCURACIES, NONE, WORDS, accuracy, leaderboard, method, tally
from vitlab.compare.verdict import Finding, tell

TEMPLATE = Path(__file__).with_name("page.html")
LONG = 28  # characters


def page(comparison: Comparison, finding: Finding, pictures: Sequence[Picture], out: Path) -> str:
    """Return the page.

    Args:
        out: the folder it is for. Runs that lie below the folder above it are linked; others, which a reader
            of the page is unlikely to have beside it, are only named.
    """
    notes = [_tag("li", escape(note)) for note in comparison.notes]
    same = "All runs have one configuration."
    if len(comparison.groups) > 1:
        same = "Of each: what is not as in most configurations, then its runs."
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=escape(comparison.title),
        lead=escape(_lead(comparison)),
        verdict="\n".join(_verdict(comparison, finding)),
        notes=_tag("ul", *notes) if notes else "",
        table=_leaderboard(comparison, finding),
        figures=_figures(pictures),
        others=_others(comparison, out),
        same=same,
        groups="\n".join(_configurations(comparison, out)),
        method="\n".join(_tag("li", escape(line)) for line in method(comparison, finding)),
    )


def _tag(name: str, *inside: str, **attributes: object) -> str:
    """Return an element. What is inside is HTML, attributes are text, and left out if None."""
    # As keyword arguments, class is class_ and data-value is data_value.
    said = {key.strip("_").replace("_", "-"): value for key, value in attributes.items() if value is not None}
    opening = " ".join([name, *(f'{key}="{escape(str(value))}"' for key, value in said.items())])
    return f"<{opening}>{''.join(inside)}</{name}>"


def _table(heads: Iterable[str], lines: Iterable[str], **attributes: object) -> str:
    body = _tag("tbody", "\n", "\n".join(lines), "\n")
    return _tag("table", _tag("thead", _tag("tr", *heads)), "\n", body, **attributes)


def _cell(text: str, value: float | str | None = None, *, words: bool = False) -> str:
    return _tag("td", escape(text), data_value=value, class_="words" if words else None)


def _head(text: str, *, words: bool = False, sort: str | None = None) -> str:
    return _tag("th", escape(text), scope="col", class_="words" if words else None, aria_sort=sort)


def _row_head(inside: str, value: str | None = None) -> str:
    return _tag("th", inside, scope="row", class_="words", data_value=value)


def _name(name: str) -> str:
    """Return a group's name that breaks between its settings, and inside one only where that is long."""
    parts = name.split(" ")
    return " ".join(_tag("span", escape(p), class_="whole" if len(p) < LONG else None) for p in parts)


def _lead(comparison: Comparison) -> str:
    number = len(comparison.groups)
    said = f"{number} configuration{'s' * (number != 1)}; {tally(comparison.runs)}."
    if comparison.groups and not comparison.several_data and (best := comparison.groups[0].spread("val")):
        name = f", of {comparison.groups[0].name}" if number > 1 else ""
        said += f" Highest mean val accuracy: {accuracy(best)} %{name}."
    return said


def _verdict(comparison: Comparison, finding: Finding) -> Iterator[str]:
    """Yield paragraphs, and lists of the lines that belong to the paragraph above."""
    for inside, lines in groupby(tell(comparison, finding, commands=False), lambda line: line[0] == " "):
        elements = [_tag("li" if inside else "p", escape(line.strip())) for line in lines]
        yield _tag("ul", *elements) if inside else "\n".join(elements)


def _leaderboard(comparison: Comparison, finding: Finding) -> str:
    names, *columns = leaderboard(comparison, finding).items()
    ordered = None if comparison.several_data else ACCURACIES["val"]
    heads = [_head(names[0], words=True)]
    table = [[_row_head(_name(cell.text), cell.text) for cell in names[1]]]
    for head, cells in columns:
        words = head in WORDS
        heads.append(_head(head, words=words, sort="descending" if head == ordered else None))
        table.append([_cell(*cell, words=words) for cell in cells])
    lines = [
        _tag("tr", *line, class_="baseline" if group is comparison.baseline else None)
        for group, *line in zip(comparison.groups, *table, strict=True)
    ]
    return _table(heads, lines, class_="sortable")


def _figures(pictures: Sequence[Picture]) -> str:
    if not pictures:
        return ""
    drawn = []
    for picture in pictures:
        source = f"data:image/png;base64,{b64encode(picture.png).decode()}"
        image = f'<img alt="{escape(picture.alt)}" src="{source}">'
        drawn.append(_tag("figure", _tag("div", image), _tag("figcaption", escape(picture.caption))))
    return _tag("h2", "Figures") + _tag("div", "\n", "\n".join(drawn), "\n", class_="figures")


def _wide(heads: Iterable[str], rows: Iterable[Iterable[str]], label: str) -> str:
    """Return a table that may be wider than a phone; a keyboard scrolls it where it has the focus."""
    table = _table(heads, (_tag("tr", *row) for row in rows))
    return _tag("div", table, class_="wide", role="region", tabindex="0", aria_label=label)


def _others(comparison: Comparison, out: Path) -> str:
    """Return the runs that are not in the statistics, and why."""
    if not comparison.unfinished:
        return ""
    heads = [_head(name, words=True) for name in ("run", "state", "why, or how far")]
    rows = [
        (_row_head(_link(run, out)), _cell(run.state, words=True), _cell(run.reason, words=True))
        for run in sorted(comparison.unfinished, key=lambda run: run.state)
    ]
    title = "Not in the statistics"
    return _tag("h2", title) + _wide(heads, rows, title)


def _configurations(comparison: Comparison, out: Path) -> Iterator[str]:
    tables = [group.settings for group in comparison.groups]
    usual = {key: commonest(tables, key) for key in differing(tables) if key != "experiment"}
    alone = len(tables) == 1
    for group in comparison.groups:
        terms = []
        for key, most in usual.items():
            if (value := group.settings.get(key)) != most:
                soft = _tag("span", f"(most: {escape(most or NONE)})", class_="soft")
                terms.append(_tag("dt", escape(key)) + _tag("dd", escape(value or NONE), " ", soft))
        diff = _tag("dl", *terms) if terms else _tag("p", "As in most configurations.", class_="soft")
        states = _tag("span", escape(count_states(group.runs)), class_="soft")
        shows_test = comparison.shows_test(group)
        summary = _tag("summary", _name(group.name), " ", states)
        yield _tag(
            "details",
            summary,
            "" if alone else diff,
            _runs(group, out, shows_test=shows_test),
            open="" if alone else None,
        )


def _runs(group: Group, out: Path, *, shows_test: bool) -> str:
    heads = [_head("run", words=True), _head("seed"), _head("state", words=True)]
    heads += [_head(name) for name in (*ACCURACIES.values(), "epochs", "images/s", "minutes")]
    rows = []
    for run in sorted(group.runs, key=lambda run: (run.seed.rjust(20), run.name)):
        known = run.metrics if shows_test else {SPLITS["val"]: run.metrics.get(SPLITS["val"])}
        accuracies = [f"{100 * v:.2f}" if (v := known.get(m)) is not None else NONE for m in SPLITS.values()]
        costs = [
            f"{run.cost[key] / unit:,.{digits}f}" if key in run.cost else NONE
            for key, unit, digits in (("images_per_second", 1, 0), ("wall_seconds", 60, 1))
        ]
        numbers = map(_cell, (*accuracies, str(run.epochs), *costs))
        rows.append((_row_head(_link(run, out)), _cell(run.seed), _cell(run.state, words=True), *numbers))
    return _wide(heads, rows, f"Runs of {group.name}")


def _link(run: Run, out: Path) -> str:
    path, above = run.path.resolve(), out.resolve().parent
    if run.state == "skipped" or not path.is_relative_to(above):
        return escape(run.name)
    return _tag("a", escape(run.name), href=quote(os.fsencode(os.path.relpath(path, out.resolve()))) + "/")
