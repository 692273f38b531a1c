"""Figures of a run, from plain numbers and arrays. Needs matplotlib alone."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

RIGHT, WRONG = "#2a7f3f", "#c0392b"
TRAIN, VAL, RATE = "#1f77b4", "#d95f02", "#555555"


def _figure(*, width: float, height: float) -> Figure:
    # Not pyplot: it keeps every figure alive and picks a display.
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


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
