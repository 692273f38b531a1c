"""The figures of a run: which are drawn when (``draw_…``), and what they look like (``plot_…``)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vitlab.core.metrics_csv import read_metrics
from vitlab.core.plotting import (
    RATE,
    RIGHT,
    TRAIN,
    VAL,
    WRONG,
    new_figure,
    rasterize,
    save_figure,
    shorten_name,
    style_axes,
)
from vitlab.core.run_folder import RunFolder
from vitlab.core.seeding import derive_seed
from vitlab.training.build import Components
from vitlab.training.trackers import Tracker

GRID, COLUMNS = 40, 8  # images in predictions.png, and in a row of it
SHOWN, DRAWS = 8, 6  # images in augmentations.png, and how often each is drawn


def draw_augmentations(folder: RunFolder, parts: Components, trackers: Sequence[Tracker]) -> None:
    """Write what the augmentation makes of a few training images, drawn as in training; once a run."""
    if (folder.figures / "augmentations.png").exists():  # of before a resume
        return
    config = parts.config
    images, labels = parts.data.train_images(SHOWN)
    targets = torch.nn.functional.one_hot(labels, len(parts.data.classes)).float()
    rows = [(images, targets)]
    for number in range(DRAWS):
        generator = torch.Generator().manual_seed(derive_seed(config["seed"], "augmentations", number))
        rows.append(parts.data.augment(images, targets, generator, 0))
    title = " → ".join(config["augment"]["ops"]) or "images as they are"
    title += f" on {parts.dataset.name}, seed {config['seed']}"
    if smoothing := config["task"]["label_smoothing"]:
        title += f"; targets before label smoothing {smoothing:g}"
    arrays = [(pixels.cpu().numpy(), soft.cpu().numpy()) for pixels, soft in rows]
    _save(plot_augmentations(arrays, parts.data.classes, title), folder, "augmentations", trackers)


def draw_learning_rate(folder: RunFolder, parts: Components, trackers: Sequence[Tracker]) -> None:
    """Write the curve of the learning rate, which is known before the first step; once a run."""
    if (folder.figures / "learning_rate.png").exists():  # of before a resume
        return
    plan, config = parts.plan, parts.config
    groups = parts.task.built_optimizer.param_groups
    layers = {group["lr"]: group["name"].partition("/")[2] for group in groups}
    curves = {layers[lr]: _rates(parts, lr, plan.total_steps) for lr in (max(layers), min(layers))}
    rates = [rate for _, rate in curves[layers[max(layers)]]]
    title = (
        f"{config['choices']['scheduler']} for {config['choices']['optimizer']}: peak {max(rates):.3g}, "
        f"last {rates[-1]:.2g}; {plan.total_steps:,} steps, batch {plan.effective_batch}"
    )
    figure = plot_learning_rate(curves, plan.warmup_steps * plan.epochs / plan.total_steps, title)
    _save(figure, folder, "learning_rate", trackers)


def draw_results(folder: RunFolder, parts: Components, metrics: Mapping[str, float], steps: int) -> None:
    """Write the figures of a run after so many optimizer steps; with the test's, if it has ``metrics``."""
    config = parts.config
    title = f"{config['choices']['model']} on {parts.dataset.name}, seed {config['seed']}"
    rate = _rates(parts, config["optimizer"]["lr"], steps)
    _save(plot_history(read_metrics(folder), rate, title), folder, "history")
    if not metrics:
        return
    title += f": test accuracy {metrics['test/accuracy']:.2%}"
    counts = parts.task.confusion_counts.cpu().numpy()
    _save(plot_confusion_matrix(counts, parts.data.classes, title), folder, "confusion_matrix")
    # Drawn at random, the same in every run, and not picked by how they turn out: the grid shows
    # mistakes as often as they are made.
    places = torch.randperm(parts.data.num_test, generator=torch.Generator().manual_seed(0))[:GRID]
    images, labels = parts.data.read("test", places)  # uint8 (N, C, H, W), (N,)
    weight = next(parts.net.parameters())  # float32, unless trainer.precision is bf16-true or 64-true
    inputs = parts.data.preprocess.to(weight.device)(images.to(weight.device)).to(weight.dtype)
    parts.net.eval()
    with torch.no_grad():
        # `forward`, not a call: a compiled network would be compiled again for this one batch's shape.
        probabilities = parts.net.forward(inputs).float().softmax(-1)
    grid = images.cpu().numpy(), labels.tolist(), probabilities.cpu().numpy()
    _save(plot_predictions(*grid, parts.data.classes, title), folder, "predictions")


def _save(figure: Figure, folder: RunFolder, name: str, trackers: Sequence[Tracker] = ()) -> None:
    folder.figures.mkdir(exist_ok=True)
    save_figure(figure, folder.figures / f"{name}.png")
    if trackers:
        pixels = rasterize(figure)
        for tracker in trackers:
            tracker.add_image(name, pixels)


def _rates(parts: Components, peak: float, steps: int) -> list[tuple[float, float]]:
    """Return (epoch, learning rate) along the first ``steps`` optimizer steps, the last among them."""
    total = parts.plan.total_steps
    shown = sorted({*range(0, steps, max(1, steps // 500)), steps - 1} - {-1})
    return [((s + 1) * parts.plan.epochs / total, peak * parts.task.schedule(s, total)) for s in shown]


def plot_history(rows: Sequence[dict[str, Any]], rate: Sequence[tuple[float, float]], title: str) -> Figure:
    """Draw loss, accuracy and learning rate over the epochs.

    Args:
        rows: of ``metrics.csv``.
        rate: (epoch, learning rate) along the run.
    """
    figure = new_figure(width=12, height=3.6)
    loss, accuracy, learning_rate = figure.subplots(1, 3)
    for axes, name in ((loss, "loss"), (accuracy, "accuracy")):
        for split, colour in (("train", TRAIN), ("val", VAL)):
            points = [(r["epoch"], r[f"{split}/{name}"]) for r in rows if f"{split}/{name}" in r]
            if points:
                style = {"label": split, "marker": "o" if len(points) < 30 else "", "markersize": 3}
                axes.plot(*zip(*points, strict=True), color=colour, **style)
        axes.set(xlabel="epoch", ylabel=name)
        axes.legend(frameon=False)
    if validated := [r for r in rows if "val/accuracy" in r]:
        best = max(validated, key=lambda r: r["val/accuracy"])
        accuracy.plot(best["epoch"], best["val/accuracy"], "*", color=VAL, markersize=11)
        accuracy.set_title(f"best val {best['val/accuracy']:.1%} at epoch {best['epoch']}", fontsize=9)
    # Training accuracy is measured on augmented images and with dropout: it can lie under validation.
    loss.set_title("train: augmented, smoothed targets", fontsize=9)
    learning_rate.plot(*zip(*rate, strict=True), color=RATE)
    _label_rate(learning_rate)
    for axes in figure.axes:
        style_axes(axes)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.suptitle(title, fontsize=10)
    return figure


def plot_learning_rate(
    curves: Mapping[str, Sequence[tuple[float, float]]], warmup: float, title: str
) -> Figure:
    """Draw a schedule over the epochs.

    Args:
        curves: name of a layer → (epoch, learning rate) along the run; one alone needs no name.
        warmup: its length in epochs, 0 for none.
    """
    figure = new_figure(width=7, height=3.4)
    axes = figure.subplots()
    if warmup:
        axes.axvspan(0, warmup, color=VAL, alpha=0.12, label=f"warmup: {warmup:.3g} epoch(s)")
    for (name, points), colour in zip(curves.items(), (RATE, TRAIN), strict=False):
        label = f"{name}, peak {max(rate for _, rate in points):.3g}" if len(curves) > 1 else None
        axes.plot(*zip(*points, strict=True), color=colour, label=label)
    _label_rate(axes)
    axes.set_xlim(0, max(epoch for points in curves.values() for epoch, _ in points))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    style_axes(axes)
    if warmup or len(curves) > 1:
        axes.legend(frameon=False)
    axes.set_title(title, fontsize=10)
    return figure


def _label_rate(axes: Axes) -> None:
    axes.set(xlabel="epoch", ylabel="learning rate")
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
    axes.set_ylim(bottom=0)


def plot_confusion_matrix(counts: np.ndarray, classes: Sequence[str], title: str) -> Figure:
    """Draw ``counts`` (K, K), rows the truth and columns the prediction, shaded by the share of the row."""
    k = len(classes)
    classes = [shorten_name(name) for name in classes]
    size = min(24.0, 2.5 + 0.55 * k) if k <= 40 else 12.0
    figure = new_figure(width=size + 0.8, height=size)
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


def plot_predictions(
    images: np.ndarray, labels: Sequence[int], probabilities: np.ndarray, classes: Sequence[str], title: str
) -> Figure:
    """Draw a grid of images (N, C, H, W) uint8 with truth, prediction and confidence; mistakes in red.

    Args:
        labels: N true classes.
        probabilities: (N, K), the softmax of the logits.
    """
    rows = -(-len(images) // COLUMNS)
    classes = [shorten_name(name) for name in classes]
    aspect = images.shape[2] / images.shape[3]
    figure = new_figure(width=1.6 * COLUMNS, height=(1.5 * aspect + 0.5) * rows + 0.5)
    grid = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for axes in grid[len(images) :]:
        axes.axis("off")
    for axes, image, label, probability in zip(grid, images, labels, probabilities, strict=False):
        predicted = int(probability.argmax())
        right = predicted == label
        colour = RIGHT if right else WRONG
        axes.set(xticks=[], yticks=[])
        axes.imshow(image.transpose(1, 2, 0), cmap="gray", vmin=0, vmax=255)  # a map for gray images alone
        axes.spines[:].set(color=colour, linewidth=1.5 if right else 3)
        text = f"{classes[predicted]} {probability[predicted]:.0%}"
        text += "" if right else f"\n✗ is {classes[label]}"
        axes.set_title(text, fontsize=8, color=colour, pad=3)
    figure.suptitle(title, fontsize=10)
    return figure


def plot_augmentations(
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
    figure = new_figure(width=sheet.shape[1] * inches + 0.5, height=sheet.shape[0] * inches + 0.7)
    axes = figure.subplots()
    for row, (images, targets) in enumerate(rows):
        top = row * (space + height) + space
        label = f"draw {row}" if row else "original"
        axes.text(-1.5 * gap, top + height / 2, label, rotation=90, ha="center", va="center", fontsize=9)
        for column, (image, target) in enumerate(zip(images, targets, strict=True)):
            left = column * (width + gap)
            levels = image if image.dtype == np.uint8 else np.round(255 * image)
            sheet[top : top + height, left : left + width] = levels.transpose(1, 2, 0)  # gray is repeated
            shares = [
                (target[k], shorten_name(classes[k])) for k in target.argsort()[::-1] if target[k] >= 0.005
            ]
            text = "\n".join(f"{name} {share:.0%}" for share, name in shares) if shares[1:] else shares[0][1]
            axes.text(left + width / 2, top - space / 12, text, ha="center", va="bottom", fontsize=8)
    axes.imshow(sheet)
    axes.axis("off")
    figure.suptitle(title, fontsize=10)
    return figure
