"""Figures of a search."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter, StrMethodFormatter

from vitlab.core.plotting import TRAIN, VAL, WRONG, new_figure, numbers_first, shorten_name, style_axes
from vitlab.sweep.record import OBJECTIVE

# Each with ``number``, ``state`` (a key of `MARKERS`), ``value`` (of the objective, its best epoch) and
# ``params``: key → number, or text for one of a list.
Trials = Sequence[Mapping[str, Any]]
# What became of a trial: colour and marker.
MARKERS = {"finished": (TRAIN, "o"), "pruned": ("#9aa3ad", "v"), "diverged": (WRONG, "x")}


def plot_trials(trials: Trials, title: str) -> Figure:
    """Draw the course of a search: what each trial reached, and the best so far."""
    figure = new_figure(width=8, height=4)
    axes = figure.subplots()
    numbers = [trial["number"] for trial in trials]
    _scatter_trials(axes, trials, numbers)
    best = np.maximum.accumulate([t["value"] if t["state"] == "finished" else -np.inf for t in trials])
    best[np.isinf(best)] = np.nan  # before the first has finished
    axes.step(numbers, best, where="post", color=VAL, label="best finished so far", zorder=1)
    axes.set(xlabel="trial", ylabel=f"{OBJECTIVE}, best epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    axes.set_title(title, fontsize=10)
    return figure


def plot_values(trials: Trials, keys: Mapping[str, bool], title: str) -> Figure:
    """Draw what the trials reached against each key that was searched (key → logarithmic), a panel a key."""
    columns = min(3, len(keys))
    rows = -(-len(keys) // columns)
    figure = new_figure(width=3.6 * columns + 0.6, height=3.2 * rows + 0.5)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    for axes, (key, log) in zip(grid, keys.items(), strict=False):
        values = [trial["params"][key] for trial in trials]
        if isinstance(values[0], str):
            options = sorted(set(values), key=numbers_first)
            places = [options.index(value) for value in values]
            names = [shorten_name(option) for option in options]
            axes.set_xticks(range(len(options)), names, rotation=30 if len(options) > 4 else 0)
            axes.set_xlim(-0.5, len(options) - 0.5)
        else:
            places = values
            if log:
                axes.set_xscale("log")
                axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))  # its own would be formulas
                axes.xaxis.set_minor_formatter(NullFormatter())
        _scatter_trials(axes, trials, places)
        axes.set_xlabel(key)
    for axes in grid[len(keys) :]:
        axes.axis("off")
    for axes in grid[::columns]:
        axes.set_ylabel(OBJECTIVE)
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(title, fontsize=10)
    return figure


def _scatter_trials(axes: Axes, trials: Trials, places: Sequence[float]) -> None:
    """Draw each trial's value over its place; a star for the best that finished."""
    for state, (colour, marker) in MARKERS.items():
        points = [(x, t["value"]) for x, t in zip(places, trials, strict=True) if t["state"] == state]
        if points:
            x, y = zip(*points, strict=True)
            axes.scatter(x, y, color=colour, marker=marker, s=28, label=state, zorder=2)
    finished = [(t["value"], x) for x, t in zip(places, trials, strict=True) if t["state"] == "finished"]
    value, place = max(finished, key=lambda pair: pair[0])
    axes.plot(place, value, "*", color=VAL, markersize=13, zorder=3, label="best")
    style_axes(axes)
