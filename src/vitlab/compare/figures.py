"""The figures of a comparison."""

import itertools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from vitlab.compare.groups import Comparison, Group
from vitlab.compare.statistics import pareto
from vitlab.compare.table import SHOWN_COSTS, count
from vitlab.core.plotting import GREY, new_figure, numbers_first, shorten_name, style_axes

NAMES = ("differences", "curves", "heatmap", *(f"accuracy_{key}" for key in SHOWN_COSTS))  # of all files
COLOURED = 10  # lines that an eye can tell apart
LABELLED = 12  # points of a figure that are all named; of more, only the front
MOST_CELLS = 400
MOST_ROWS = 40  # of differences
_short = partial(shorten_name, longest=34)
DPI = 110  # of the files: labels are placed by the pixel


@dataclass(frozen=True)
class Picture:
    """A figure of the report.

    name: of its file. caption: what it shows and how to read it. alt: what a reader who cannot see it should
    know of it.
    """

    name: str
    caption: str
    alt: str
    png: bytes


def draw(comparison: Comparison) -> list[Picture]:
    """Draw what the runs give: figures that would be empty are left out."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # names in a script that the font lacks
        drawn = [_differences(comparison), _curves(comparison), _heatmap(comparison)]
        drawn += [_cost(comparison, key, name) for key, name in SHOWN_COSTS.items()]
    return [picture for picture in drawn if picture]


def _picture(name: str, caption: str, alt: str, figure: Figure) -> Picture:
    out = BytesIO()
    # Without the version of matplotlib in it, the same numbers make the same file.
    figure.savefig(out, format="png", metadata={"Software": None})
    return Picture(name, caption, alt, out.getvalue())


def _show_accuracy(axes: Axes, *, against: str) -> None:
    axes.set(xlabel=against, ylabel="val accuracy")
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
    style_axes(axes)


def _differences(comparison: Comparison) -> Picture | None:
    base = comparison.baseline
    found = [(group, d) for group in comparison.groups if (d := group.difference.get("val"))]
    if base is None or not found or not comparison.tells:
        return None
    found.sort(key=lambda pair: -pair[1].mean)
    end = MOST_ROWS // 2
    shown = found if len(found) <= MOST_ROWS else [*found[:end], *found[-end:]]
    figure = new_figure(width=7.5, height=1.3 + 0.3 * len(shown), dpi=DPI)
    axes = figure.subplots()
    origin = base.by_seed("val")
    sure = 0
    for place, (group, difference) in enumerate(shown):
        low, high = difference.interval or (difference.mean, difference.mean)
        apart = difference.n > 1 and low * high > 0
        sure += apart
        colour = "tab:blue" if apart else "#7a828c"
        values = group.by_seed("val").items()
        seeds = [100 * (value - origin[seed]) for seed, value in values if seed in origin]
        axes.plot(seeds, [place] * len(seeds), "o", color=colour, alpha=0.35, ms=5, mew=0)
        mean = difference.mean
        ends = [[100 * (mean - low)], [100 * (high - mean)]] if difference.n > 1 else None
        axes.errorbar(100 * mean, place, xerr=ends, fmt="D", color=colour, ms=5, elinewidth=1.4, capsize=3)
    axes.axvline(0, color="#222222", lw=0.8)
    axes.set_yticks(range(len(shown)), [_short(group.name) for group, _ in shown], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(f"points of val accuracy over {_short(base.name)}, the same seeds")
    style_axes(axes)
    caption = (
        f"What each group has over {base.name}, by validation accuracy: a dot is a seed that both have, the "
        "diamond the mean with its 95 % interval. Blue: the interval is all on one side of zero; the "
        "verdict says whether that is more than luck after so many comparisons."
    )
    if len(shown) < len(found):
        caption += f" The {end} highest and the {end} lowest of {len(found)} groups."
    alt = f"Chart of {len(shown)} paired differences to {base.name}; {sure} have an interval without zero."
    return _picture("differences", caption, alt, figure)


def _curves(comparison: Comparison) -> Picture | None:
    partly = not any(run.curve for group in comparison.groups for run in group.finished)
    lines = [
        (group, [run.curve for run in (group.runs if partly else group.finished) if run.curve])
        for group in comparison.groups
    ]
    shown = [(group, curves) for group, curves in lines if curves]
    if not shown:
        return None
    figure = new_figure(width=8, height=4.4, dpi=DPI)
    axes = figure.subplots()
    for place, (group, curves) in reversed([*enumerate(shown)]):
        epochs = sorted(set.intersection(*map(set, curves)))
        values = np.array([[curve[epoch] for epoch in epochs] for curve in curves])  # (seeds, epochs)
        first = place < COLOURED
        colour = colormaps["tab10"](place) if first else GREY
        label = _short(group.name) if first else None
        marker = "o" if len(epochs) < 3 else None
        width = 1.8 if first else 0.8
        axes.plot(epochs, values.mean(0), color=colour, label=label, lw=width, marker=marker, ms=4)
        if first and len(curves) > 1:
            axes.fill_between(epochs, values.min(0), values.max(0), color=colour, alpha=0.15, lw=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    _show_accuracy(axes, against="epoch")
    figure.legend(loc="outside right upper", reverse=True, frameon=False, fontsize=8)
    caption = (
        "Validation accuracy, epoch by epoch: a line is the mean over seeds, its band goes from the lowest "
        "seed to the highest."
    )
    if len(shown) > COLOURED:
        caption += f" The best {COLOURED} of {len(shown)} groups are in colour, the others grey."
    if partly:
        caption += " No run has finished: these are as far as they are."
    elif any(run.curve for run in comparison.unfinished):
        caption += " Finished runs only."
    alt = (
        f"Line chart of validation accuracy over epochs, {len(shown)} groups; the table has the best epochs."
    )
    return _picture("curves", caption, alt, figure)


def _heatmap(comparison: Comparison) -> Picture | None:
    if len(comparison.keys) != 2 or not any(group.spread("val") for group in comparison.groups):
        return None
    (row, row_name), (column, column_name) = comparison.keys.items()
    cells = {(g.settings.get(row, "–"), g.settings.get(column, "–")): g for g in comparison.groups}
    rows, columns = (sorted({cell[i] for cell in cells}, key=numbers_first) for i in (0, 1))
    if len(cells) < len(comparison.groups):
        return None  # several groups a cell, as with two data sets
    if min(len(rows), len(columns)) < 2 or len(rows) * len(columns) > MOST_CELLS:
        return None
    grid = np.full((len(rows), len(columns)), np.nan)
    for (r, c), group in cells.items():
        if found := group.spread("val"):
            grid[rows.index(r), columns.index(c)] = 100 * found.mean
    width, height = 2.2 + 1.25 * max(3, len(columns)), 1.4 + 0.85 * max(2, len(rows))
    figure = new_figure(width=width, height=height, dpi=DPI)
    axes = figure.subplots()
    low, high = np.nanmin(grid), np.nanmax(grid)
    colours = colormaps["viridis"].with_extremes(bad="#eceef0")
    image = axes.imshow(np.ma.masked_invalid(grid), cmap=colours, aspect="auto")
    for (i, j), value in np.ndenumerate(grid):
        words = _cell(cells.get((rows[i], columns[j])))
        dark = not np.isnan(value) and (value - low) / (high - low or 1.0) < 0.6
        axes.text(j, i, words, ha="center", va="center", fontsize=9, color="white" if dark else "black")
    axes.set_xticks(range(len(columns)), map(_short, columns))
    axes.set_yticks(range(len(rows)), map(_short, rows))
    axes.set(xlabel=column_name, ylabel=row_name)
    figure.colorbar(image, ax=axes, label="val accuracy, %")
    caption = (
        f"Validation accuracy in percent by {row_name} and {column_name}: mean over seeds, ± standard "
        "deviation, and the number of finished seeds. Grey: nothing finished."
    )
    best = comparison.groups[0].name
    alt = f"Heatmap of {len(cells)} combinations of {row_name} and {column_name}; the highest is {best}."
    return _picture("heatmap", caption, alt, figure)


def _cell(group: Group | None) -> str:
    if group is None:
        return "–"
    if (found := group.spread("val")) is None:
        return group.runs[0].state
    spread = f" ± {100 * found.std:.1f}" if found.std is not None else ""
    return f"{100 * found.mean:.1f}{spread}\nn = {found.n}"


def _cost(comparison: Comparison, key: str, name: str) -> Picture | None:
    groups = [g for g in comparison.groups if g.cost(key) and g.spread("val")]
    costs = np.array([g.cost(key) for g in groups])
    if len({*costs}) < 2:
        return None  # there is nothing to weigh
    spreads = [found for g in groups if (found := g.spread("val"))]
    means = np.array([found.mean for found in spreads])
    errors = np.array([found.std or 0.0 for found in spreads])
    low = key != "images_per_second"
    figure = new_figure(width=6.5, height=4.4, dpi=DPI)
    axes = figure.subplots()
    front: list[int] = []
    for place, data in enumerate(dict.fromkeys(g.data for g in groups)):  # no front over different images
        colour = colormaps["tab10"](place)
        members = [i for i, g in enumerate(groups) if g.data == data]
        sign = 1 if low else -1
        chosen = [members[i] for i in pareto([(sign * costs[i], means[i]) for i in members])]
        front += chosen
        at = costs[members], means[members]
        axes.errorbar(*at, yerr=errors[members], fmt="none", ecolor=colour, alpha=0.45, elinewidth=1)
        axes.scatter(*at, s=26, facecolors="white", edgecolors=[colour], linewidths=1.4, zorder=3)
        label = _short(f"front, {data}" if data else "Pareto front")
        axes.plot(costs[chosen], means[chosen], "o-", color=colour, ms=6, lw=1.2, zorder=4, label=label)
    if max(costs) > 20 * min(costs):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(lambda value, _: count(value))
    of = {"images_per_second": " of training", "flops_per_image": " of a forward pass"}.get(key, "")
    _show_accuracy(axes, against=name + of)
    axes.margins(x=0.12, y=0.12)
    figure.legend(frameon=False, fontsize=8, loc="outside upper right")
    front.sort(key=lambda i: costs[i])
    named = [*range(len(groups))] if len(groups) <= LABELLED else front
    if len(named) > LABELLED:  # evenly over the front, with both its ends
        named = [named[round(i * (len(named) - 1) / (LABELLED - 1))] for i in range(LABELLED)]
    _label(figure, axes, [(costs[i], means[i], _short(groups[i].name), i in front) for i in named])
    better = "fewer" if low else "more"
    caption = (
        f"Validation accuracy against {name}: a point is a group's mean, its line one standard deviation to "
        f"both sides. Filled points are the Pareto front: no group has {better} {name} and a higher accuracy."
    )
    if len(named) < len(front):
        caption += f" Of these, {len(named)} are named."
    elif len(named) < len(groups):
        caption += " Only these are named."
    best = ", ".join(groups[i].name for i in front[:6])
    alt = f"Scatter chart of {len(groups)} groups, accuracy against {name}; on the Pareto front: {best}."
    return _picture(f"accuracy_{key}", caption, alt, figure)


def _label(figure: Figure, axes: Axes, points: Sequence[tuple[float, float, str, bool]]) -> None:
    """Write a name beside each point, at the nearest of a few places where it covers nothing."""
    figure.draw_without_rendering()  # from here on it is known where in pixels everything stands
    half = 4.0  # pixels of a point
    at = axes.transData.transform([(x, y) for x, y, _, _ in points])
    spots = [*at]
    lines = [np.column_stack(line.get_data()) for line in axes.lines]  # the fronts
    for drawn in axes.collections:
        if isinstance(drawn, PathCollection):  # dots, also those without a name
            spots += [*axes.transData.transform(drawn.get_offsets())]
        elif isinstance(drawn, LineCollection):  # bars
            lines += drawn.get_segments()
    for corners in lines:  # as a row of spots
        for start, end in itertools.pairwise(axes.transData.transform(corners)):
            spots += [*np.linspace(start, end, 2 + int(np.hypot(*(end - start)) / half))]
    taken = [(x - half, y - half, x + half, y + half) for x, y in spots]
    for (x, y), (_, _, words, front) in sorted(zip(at, points, strict=True), key=lambda p: -p[0][1]):
        look: dict[str, Any] = {"weight": "bold", "color": "#222222"} if front else {"color": "#666666"}
        text = axes.text(x, y, words, fontsize=7.5, va="center", transform=None, **look)
        extent = text.get_window_extent()
        boxes = [
            (left, y + rise - extent.height / 2, left + extent.width, y + rise + extent.height / 2)
            for rise in (0, 14, -14, 28, -28, 42, -42, 56, -56, 70, -70, 84, -84)
            for left in (x + 9, x - 9 - extent.width)
        ]
        inside = [b for b in boxes if b[0] > axes.bbox.x0 and b[2] < figure.bbox.x1 and b[3] < figure.bbox.y1]
        box = min(inside or boxes, key=lambda b: sum(_overlap(b, other) for other in taken))
        taken.append(box)
        middle = (box[1] + box[3]) / 2
        text.set_position((box[0], middle))
        text.set_in_layout(False)
        if abs(middle - y) > 8:
            near = box[0] if box[0] > x else box[2]
            leader = Line2D((x, near), (y, middle), color=GREY, linewidth=0.7, transform=None, zorder=1)
            axes.add_artist(leader).set_in_layout(False)


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, width) * max(0.0, height)
