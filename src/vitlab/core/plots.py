"""Figures of a run, from plain numbers and arrays. Needs matplotlib alone."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter, StrMethodFormatter

matplotlib.rcParams["text.parse_math"] = False  # names of classes and data sets may hold a $
RIGHT, WRONG = "#2a7f3f", "#c0392b"
TRAIN, VAL, RATE = "#1f77b4", "#d95f02", "#555555"


def _figure(*, width: float, height: float) -> Figure:
    # Not pyplot: it keeps every figure alive and picks a display.
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def rasterize(figure: Figure) -> np.ndarray:
    """Return the figure as a picture: (H, W, 3) uint8."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def _short(name: str, most: int = 18) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def history(rows: Sequence[dict[str, Any]], rate: Sequence[tuple[float, float]], title: str) -> Figure:
    """Draw loss, accuracy and learning rate over the epochs.

    Args:
        rows: of ``metrics.csv``.
        rate: (epoch, learning rate) along the run.
        title: says what was trained on what.
    """
    figure = _figure(width=12, height=3.6)
    loss, accuracy, learning_rate = figure.subplots(1, 3)
    for axes, name in ((loss, "loss"), (accuracy, "accuracy")):
        for split, colour in (("train", TRAIN), ("val", VAL)):
            points = [(r["epoch"], r[f"{split}/{name}"]) for r in rows if f"{split}/{name}" in r]
            if points:
                marker = "o" if len(points) < 30 else ""
                axes.plot(
                    *zip(*points, strict=True),
                    color=colour,
                    label=split,
                    marker=marker,
                    markersize=3,
                )
        axes.set(xlabel="epoch", ylabel=name)
        axes.legend(frameon=False)
    if any("val/accuracy" in r for r in rows):
        best = max((r for r in rows if "val/accuracy" in r), key=lambda r: r["val/accuracy"])
        accuracy.plot(best["epoch"], best["val/accuracy"], "*", color=VAL, markersize=11)
        accuracy.set_title(f"best val {best['val/accuracy']:.1%} at epoch {best['epoch']}", fontsize=9)
    # Training accuracy is measured on augmented images and with dropout: it can lie under validation.
    loss.set_title("train: augmented, smoothed targets", fontsize=9)
    learning_rate.plot(*zip(*rate, strict=True), color=RATE)
    learning_rate.set(xlabel="epoch", ylabel="learning rate")
    learning_rate.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
    learning_rate.set_ylim(bottom=0)
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.suptitle(title, fontsize=10)
    return figure


def learning_rate(curves: Mapping[str, Sequence[tuple[float, float]]], warmup: float, title: str) -> Figure:
    """Draw a schedule over the epochs.

    Args:
        curves: name of a layer → (epoch, learning rate) along the run; one alone needs no name.
        warmup: its length in epochs, 0 for none.
    """
    figure = _figure(width=7, height=3.4)
    axes = figure.subplots()
    if warmup:
        axes.axvspan(0, warmup, color=VAL, alpha=0.12, label=f"warmup: {warmup:.3g} epoch(s)")
    for (name, points), colour in zip(curves.items(), (RATE, TRAIN), strict=False):
        label = f"{name}, peak {max(rate for _, rate in points):.3g}" if len(curves) > 1 else None
        axes.plot(*zip(*points, strict=True), color=colour, label=label)
    axes.set(xlabel="epoch", ylabel="learning rate")
    axes.set_xlim(0, max(epoch for points in curves.values() for epoch, _ in points))
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    if warmup or len(curves) > 1:
        axes.legend(frameon=False)
    axes.set_title(title, fontsize=10)
    return figure


def confusion_matrix(counts: np.ndarray, classes: Sequence[str], title: str) -> Figure:
    """Draw ``counts`` (K, K), rows the truth and columns the prediction, shaded by the share of the row."""
    k = len(classes)
    classes = [_short(name) for name in classes]
    size = min(24.0, 2.5 + 0.55 * k) if k <= 40 else 12.0
    figure = _figure(width=size + 0.8, height=size)
    axes = figure.subplots()
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    if k <= 40:
        font = 9 if k <= 12 else 6
        axes.set_xticks(range(k), classes, rotation=45, ha="right", fontsize=font)
        axes.set_yticks(range(k), classes, fontsize=font)
        for row, column in np.ndindex(k, k):
            if counts[row, column]:
                colour = "white" if share[row, column] > 0.5 else "black"
                text = f"{counts[row, column]:d}"
                axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=font - 1)
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_title(title, fontsize=10)
    figure.colorbar(image, ax=axes, fraction=0.046, label="share of the true class")
    return figure


def predictions(
    images: np.ndarray,
    labels: Sequence[int],
    probabilities: np.ndarray,
    classes: Sequence[str],
    title: str,
    columns: int = 8,
) -> Figure:
    """Draw a grid of images (N, C, H, W) uint8 with truth, prediction and confidence; mistakes in red.

    Args:
        labels: N true classes.
        probabilities: (N, K), the softmax of the logits.
    """
    rows = -(-len(images) // columns)
    classes = [_short(name) for name in classes]
    aspect = images.shape[2] / images.shape[3]
    figure = _figure(width=1.6 * columns, height=(1.5 * aspect + 0.5) * rows + 0.5)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.axis("off")
    for axes, image, label, probability in zip(grid, images, labels, probabilities, strict=False):
        predicted = int(probability.argmax())
        right = predicted == label
        axes.axis("on")
        axes.set(xticks=[], yticks=[])
        gray = image.shape[0] == 1
        pixels = image[0] if gray else image.transpose(1, 2, 0)
        axes.imshow(pixels, cmap="gray" if gray else None, vmin=0, vmax=255)
        for spine in axes.spines.values():
            spine.set(color=RIGHT if right else WRONG, linewidth=1.5 if right else 3)
        text = f"{classes[predicted]} {probability[predicted]:.0%}"
        text += "" if right else f"\n✗ is {classes[label]}"
        axes.set_title(text, fontsize=8, color=RIGHT if right else WRONG, pad=3)
    figure.suptitle(title, fontsize=10)
    return figure


def augmentations(
    rows: Sequence[tuple[np.ndarray, np.ndarray]], classes: Sequence[str], title: str
) -> Figure:
    """Draw training images, a column each: the first row as they are stored, then draw by draw.

    Args:
        rows: images (N, C, H, W), uint8 or float 0..1, and their soft targets (N, K). A caption names the
            classes that have at least half a percent.
    """
    number, _, height, width = rows[0][0].shape
    space, gap = -(-width // 4), -(-width // 16)  # pixels: over an image for its caption, between two
    # One picture, not a pair of axes an image: that would take seconds, and every run starts with this.
    sheet = np.full((len(rows) * (space + height), number * (width + gap) - gap, 3), 255, np.uint8)
    inches = 1.45 / max(height, width)  # for each pixel
    figure = _figure(width=sheet.shape[1] * inches + 0.5, height=sheet.shape[0] * inches + 0.7)
    axes = figure.subplots()
    for row, (images, targets) in enumerate(rows):
        top = row * (space + height) + space
        label = f"draw {row}" if row else "original"
        axes.text(-1.5 * gap, top + height / 2, label, rotation=90, ha="center", va="center", fontsize=9)
        for column, (image, target) in enumerate(zip(images, targets, strict=True)):
            left = column * (width + gap)
            levels = image if image.dtype == np.uint8 else np.round(255 * image)
            sheet[top : top + height, left : left + width] = levels.transpose(1, 2, 0)  # gray is repeated
            shares = [(target[k], _short(classes[k])) for k in target.argsort()[::-1] if target[k] >= 0.005]
            text = "\n".join(f"{name} {share:.0%}" for share, name in shares) if shares[1:] else shares[0][1]
            axes.text(left + width / 2, top - space / 12, text, ha="center", va="bottom", fontsize=8)
    axes.imshow(sheet)
    axes.axis("off")
    figure.suptitle(title, fontsize=10)
    return figure


def throughput(layers: Mapping[str, Mapping[str, Any]], title: str) -> Figure:
    """Draw images per second of several contenders as bars: the median, whiskers from min to max.

    Args:
        layers: title of a panel → name → {"images_per_second": {"median", "min", "max"}, "ratio": the
            same or None}. A bar says its median, and how many times that the first one reaches.
        title: says what was measured on what.
    """
    counts = [len(rows) for rows in layers.values()]
    figure = _figure(width=9, height=0.8 + sum(0.75 + 0.42 * count for count in counts))
    panels = figure.subplots(len(layers), 1, squeeze=False, height_ratios=[count + 0.6 for count in counts])
    for axes, (name, rows) in zip(panels.ravel(), layers.items(), strict=True):
        rates = [row["images_per_second"] for row in rows.values()]
        medians = [rate["median"] for rate in rates]
        whiskers = [
            [rate["median"] - rate["min"] for rate in rates],
            [rate["max"] - rate["median"] for rate in rates],
        ]
        colours = [TRAIN] + ["#b8bec6"] * (len(rates) - 1)
        axes.barh(list(rows), medians, xerr=whiskers, color=colours, capsize=3, error_kw={"linewidth": 1})
        for place, (row, rate) in enumerate(zip(rows.values(), rates, strict=True)):
            text = f"  {rate['median']:,.0f}"
            if row["ratio"]:
                text += f"   ({next(iter(rows))}: {row['ratio']['median']:.2f} times)"
            axes.text(rate["max"], place, text, va="center", fontsize=9)
        axes.set_title(name, fontsize=10, loc="left")
        axes.set_xlim(0, 1.45 * max(rate["max"] for rate in rates))  # room for the words
        axes.invert_yaxis()
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.tick_params(labelsize=9)
    panels[-1, 0].set_xlabel("images per second")
    figure.suptitle(title, fontsize=10)
    return figure


# What became of a trial: colour and marker.
TRIALS = {"finished": (TRAIN, "o"), "pruned": ("#9aa3ad", "v"), "diverged": (WRONG, "x")}


def search_trials(trials: Sequence[Mapping[str, Any]], objective: str, title: str) -> Figure:
    """Draw the course of a search: what each trial reached, and the best so far.

    Args:
        trials: ``number``, ``state`` (a key of `TRIALS`), ``value`` (of the objective, its best epoch).
    """
    figure = _figure(width=8, height=4)
    axes = figure.subplots()
    _scatter_trials(axes, trials, [trial["number"] for trial in trials])
    best = np.maximum.accumulate([t["value"] if t["state"] == "finished" else -np.inf for t in trials])
    best[np.isinf(best)] = np.nan  # before the first has finished
    axes.step(
        [t["number"] for t in trials], best, where="post", color=VAL, label="best finished so far", zorder=1
    )
    axes.set(xlabel="trial", ylabel=f"{objective}, best epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    axes.set_title(title, fontsize=10)
    return figure


def search_values(
    trials: Sequence[Mapping[str, Any]], keys: Mapping[str, bool], objective: str, title: str
) -> Figure:
    """Draw what the trials reached against each value that was searched, a panel a key.

    Args:
        trials: as in `search_trials`, with ``params``: key → number, or text for one of a list.
        keys: key → whether its scale is logarithmic.
    """
    columns = min(3, len(keys))
    rows = -(-len(keys) // columns)
    figure = _figure(width=3.6 * columns + 0.6, height=3.2 * rows + 0.5)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    for axes, (key, log) in zip(grid, keys.items(), strict=False):
        values = [trial["params"][key] for trial in trials]
        if isinstance(values[0], str):
            options = sorted(set(values), key=_numbers_first)
            places = [options.index(value) for value in values]
            names = [_short(option) for option in options]
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
        axes.set_ylabel(objective)
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(title, fontsize=10)
    return figure


def _scatter_trials(axes: Any, trials: Sequence[Mapping[str, Any]], places: Sequence[float]) -> None:
    """Draw each trial's value over its place; a star for the best that finished."""
    for state, (colour, marker) in TRIALS.items():
        points = [(x, t["value"]) for x, t in zip(places, trials, strict=True) if t["state"] == state]
        if points:
            axes.scatter(*zip(*points, strict=True), color=colour, marker=marker, s=28, label=state, zorder=2)
    finished = [(t["value"], x) for x, t in zip(places, trials, strict=True) if t["state"] == "finished"]
    value, place = max(finished, key=lambda pair: pair[0])
    axes.plot(place, value, "*", color=VAL, markersize=13, zorder=3, label="best")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)


def _numbers_first(text: str) -> tuple[bool, float, str]:
    try:
        return False, float(text), text
    except ValueError:
        return True, 0.0, text
