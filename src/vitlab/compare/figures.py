"""The figures of a comparison."""

import itertools
import warnings
from collections.abc import Iterator, Sequence
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
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from vitlab.compare.groups import VAL, Comparison, Group
from vitlab.compare.statistics import pareto
from vitlab.compare.table import SHOWN_COSTS, count
from vitlab.core.plotting import GREY, new_figure, numbers_first, shorten_name, style_axes
from vitlab.core.run_folder import State

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
        return [
            *_differences(comparison),
            *_curves(comparison),
            *_heatmap(comparison),
            *_costs(comparison),
        ]


def _picture(name: str, caption: str, alt: str, figure: Figure) -> Picture:
    out = BytesIO()
    # Without the version of matplotlib in it, the same numbers make the same file.
    figure.savefig(out, format="png", metadata={"Software": None})
    return Picture(name, caption, alt, out.getvalue())


def _percent(axes: Axes) -> None:
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))


def _differences(comparison: Comparison) -> Iterator[Picture]:
    base = comparison.baseline
    if base is None:
        return
    found = [(g, d) for g in comparison.groups if (d := g.difference.get("val"))]
    found.sort(key=lambda pair: -pair[1].mean)
    shown = found
    if len(found) > MOST_ROWS:  # both ends
        shown = [*found[: MOST_ROWS // 2], *found[-MOST_ROWS // 2 :]]
    if not shown:
        return
    figure = new_figure(width=7.5, height=1.3 + 0.3 * len(shown), dpi=DPI)
    axes = figure.subplots()
    origin = base.by_seed(VAL)
    sure = 0
    for place, (group, difference) in enumerate(shown):
        apart = difference.half is not None and abs(difference.mean) > difference.half
        sure += apart
        colour = "tab:blue" if apart else "#7a828c"
        seeds = [100 * (value - origin[seed]) for seed, value in group.by_seed(VAL).items() if seed in origin]
        axes.plot(seeds, [place] * len(seeds), "o", color=colour, alpha=0.35, ms=5, mew=0)
        axes.errorbar(
            100 * difference.mean,
            place,
            xerr=None if difference.half is None else 100 * difference.half,
            fmt="D",
            color=colour,
            ms=5,
            elinewidth=1.4,
            capsize=3,
        )
    axes.axvline(0, color="#222222", lw=0.8)
    axes.set_yticks(range(len(shown)), [_short(group.name) for group, _ in shown], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(f"points of val accuracy over {_short(base.name)}, the same seeds")
    style_axes(axes)
    caption = (
        f"What each group has over {base.name}, by validation accuracy: a dot is a seed that both have, the "
        "diamond the mean with its 95 % interval (Student's). Blue: the interval is all on one side of zero."
    )
    if len(shown) < len(found):
        caption += f" The {len(shown) // 2} highest and the {len(shown) // 2} lowest of {len(found)} groups."
    alt = f"Chart of {len(shown)} paired differences to {base.name}; {sure} have an interval without zero."
    yield _picture("differences", caption, alt, figure)


def _curves(comparison: Comparison) -> Iterator[Picture]:
    done = [(g, [r.curve for r in g.finished if r.curve]) for g in comparison.groups]
    partly = not any(curves for _, curves in done)
    if partly:
        done = [(g, [r.curve for r in g.runs if r.curve]) for g in comparison.groups]
    shown = [(group, curves) for group, curves in done if curves]
    if not shown:
        return
    figure = new_figure(width=8, height=4.4, dpi=DPI)
    axes = figure.subplots()
    for place, (group, curves) in reversed([*enumerate(shown)]):
        epochs = sorted(set.intersection(*(set(curve) for curve in curves)))
        values = np.array([[curve[epoch] for epoch in epochs] for curve in curves])  # (seeds, epochs)
        first = place < COLOURED
        colour = colormaps["tab10"](place) if first else GREY
        label = _short(group.name) if first else None
        marker = "o" if len(epochs) < 3 else None
        width = 1.8 if first else 0.8
        axes.plot(epochs, values.mean(0), color=colour, label=label, lw=width, marker=marker, ms=4)
        if first and len(curves) > 1:
            axes.fill_between(epochs, values.min(0), values.max(0), color=colour, alpha=0.15, lw=0)
    axes.set(xlabel="epoch", ylabel="val accuracy")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    _percent(axes)
    style_axes(axes)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside right upper", frameon=False, fontsize=8)
    caption = (
        "Validation accuracy, epoch by epoch: a line is the mean over seeds, its band goes from the lowest "
        "seed to the highest."
    )
    if len(shown) > COLOURED:
        caption += f" The best {COLOURED} of {len(shown)} groups are in colour, the others grey."
    if partly:
        caption += " No run has finished: these are as far as they are."
    elif any(run.curve and run.state != State.FINISHED for run in comparison.runs):
        caption += " Finished runs only."
    alt = (
        f"Line chart of validation accuracy over epochs, {len(shown)} groups; the table has the best epochs."
    )
    yield _picture("curves", caption, alt, figure)


def _heatmap(comparison: Comparison) -> Iterator[Picture]:
    if len(comparison.keys) != 2 or not any(group.spread("val") for group in comparison.groups):
        return
    (row, row_name), (column, column_name) = comparison.keys.items()
    cells = {(g.settings.get(row, "–"), g.settings.get(column, "–")): g for g in comparison.groups}
    rows, columns = (sorted({cell[i] for cell in cells}, key=numbers_first) for i in (0, 1))
    if len(cells) < len(comparison.groups) or min(len(rows), len(columns)) < 2:
        return  # several groups a cell, as with two data sets; or nothing but a line
    if len(rows) * len(columns) > MOST_CELLS:
        return
    grid = np.full((len(rows), len(columns)), np.nan)
    for (r, c), group in cells.items():
        if found := group.spread("val"):
            grid[rows.index(r), columns.index(c)] = 100 * found.mean
    figure = new_figure(
        width=2.2 + 1.25 * max(3, len(columns)), height=1.4 + 0.85 * max(2, len(rows)), dpi=DPI
    )
    axes = figure.subplots()
    low, high = np.nanmin(grid), np.nanmax(grid)
    colours = colormaps["viridis"].with_extremes(bad="#eceef0")
    image = axes.imshow(np.ma.masked_invalid(grid), cmap=colours, aspect="auto")
    for i, r in enumerate(rows):
        for j, c in enumerate(columns):
            words = _cell(cells.get((r, c)))
            dark = not np.isnan(grid[i, j]) and (grid[i, j] - low) / (high - low or 1.0) < 0.6
            axes.text(j, i, words, ha="center", va="center", fontsize=9, color="white" if dark else "black")
    axes.set_xticks(range(len(columns)), [_short(c) for c in columns])
    axes.set_yticks(range(len(rows)), [_short(r) for r in rows])
    axes.set(xlabel=column_name, ylabel=row_name)
    figure.colorbar(image, ax=axes, label="val accuracy, %")
    best = comparison.groups[0]
    caption = (
        f"Validation accuracy in percent by {row_name} and {column_name}: mean over seeds, ± standard "
        "deviation, and the number of finished seeds. Grey: nothing finished."
    )
    alt = f"Heatmap of {len(cells)} combinations of {row_name} and {column_name}; the highest is {best.name}."
    yield _picture("heatmap", caption, alt, figure)


def _cell(group: Group | None) -> str:
    if group is None:
        return "–"
    if (found := group.spread("val")) is None:
        return group.runs[0].state
    spread = f" ± {100 * found.std:.1f}" if found.std is not None else ""
    return f"{100 * found.mean:.1f}{spread}\nn = {found.n}"


def _costs(comparison: Comparison) -> Iterator[Picture]:
    for key, name in SHOWN_COSTS.items():
        known = [g for g in comparison.groups if g.cost(key) and g.spread("val")]
        if len({g.cost(key) for g in known}) > 1:  # else there is nothing to weigh
            yield _cost(comparison, known, key, name)


def _cost(comparison: Comparison, groups: Sequence[Group], key: str, name: str) -> Picture:
    low = key != "images_per_second"
    costs = [g.cost(key) or 0.0 for g in groups]
    spreads = [s for g in groups if (s := g.spread("val"))]
    means = [s.mean for s in spreads]
    figure = new_figure(width=6.5, height=4.4, dpi=DPI)
    axes = figure.subplots()
    front: set[int] = set()
    for place, data in enumerate(dict.fromkeys(g.data for g in groups)):  # no front over different images
        colour = colormaps["tab10"](place)
        members = [i for i, g in enumerate(groups) if g.data == data]
        chosen = [members[i] for i in pareto([(costs[i], means[i]) for i in members], cheap_is_low=low)]
        front |= {*chosen}
        errors = [spreads[i].std or 0.0 for i in members]
        at = [costs[i] for i in members], [means[i] for i in members]
        axes.errorbar(*at, yerr=errors, fmt="none", ecolor=colour, alpha=0.45, elinewidth=1)
        axes.scatter(*at, s=26, facecolors="white", edgecolors=[colour], linewidths=1.4, zorder=3)
        axes.plot(
            [costs[i] for i in chosen],
            [means[i] for i in chosen],
            *("o-",),
            color=colour,
            markersize=6,
            linewidth=1.2,
            zorder=4,
            label=_short(f"front, {data}" if data else "Pareto front"),
        )
    if max(costs) > 20 * min(costs):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count(value)))
    axes.set(
        xlabel=name + (" of training" if not low else " of a forward pass" if key.startswith("flops") else "")
    )
    axes.set_ylabel("val accuracy")
    _percent(axes)
    style_axes(axes)
    axes.margins(x=0.12, y=0.12)
    figure.legend(frameon=False, fontsize=8, loc="outside upper right")
    named = [*range(len(groups))] if len(groups) <= LABELLED else sorted(front, key=lambda i: costs[i])
    if len(named) > LABELLED:  # evenly over the front, with both its ends
        named = [named[round(i * (len(named) - 1) / (LABELLED - 1))] for i in range(LABELLED)]
    _label(figure, axes, [(costs[i], means[i], _short(groups[i].name), i in front) for i in named])
    better = "fewer" if low else "more"
    caption = (
        f"Validation accuracy against {name}: a point is a group's mean, its line one standard deviation to "
        f"both sides. Filled points are the Pareto front: no group has {better} {name} and a higher accuracy."
    )
    if len(named) < len(groups):
        caption += (
            f" Of these, {len(named)} are named." if len(named) < len(front) else " Only these are named."
        )
    best = ", ".join(groups[i].name for i in sorted(front, key=lambda i: costs[i])[:6])
    alt = f"Scatter chart of {len(groups)} groups, accuracy against {name}; on the Pareto front: {best}."
    return _picture(f"accuracy_{key}", caption, alt, figure)


def _label(figure: Figure, axes: Axes, points: Sequence[tuple[float, float, str, bool]]) -> None:
    """Write a name beside each point, at the nearest of a few places where it covers nothing."""
    figure.draw_without_rendering()  # from here on it is known where in pixels everything stands
    half = 4.0  # pixels of a point
    at = axes.transData.transform([(x, y) for x, y, _, _ in points])
    spots = [*at]
    for dots in axes.collections:
        if isinstance(dots, PathCollection):  # also those without a name
            spots += [*axes.transData.transform(dots.get_offsets())]
    lines = [np.column_stack(line.get_data()) for line in axes.lines]  # the fronts
    for bars in axes.collections:
        if isinstance(bars, LineCollection):
            lines += bars.get_segments()
    for corners in lines:  # as a row of spots
        for start, end in itertools.pairwise(axes.transData.transform(corners)):
            spots += [*np.linspace(start, end, 2 + int(np.hypot(*(end - start)) / half))]
    taken = [(x - half, y - half, x + half, y + half) for x, y in spots]
    for (x, y), (_, _, words, front) in sorted(zip(at, points, strict=True), key=lambda p: -p[0][1]):
        look: dict[str, Any] = {
            "color": "#222222" if front else "#666666",
            "weight": "bold" if front else "normal",
        }
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
