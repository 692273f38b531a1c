"""The figures of a run's diagnostics: curves, attention over the epochs, positions."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import torch.nn.functional as F
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from torch import Tensor

from vitlab.core.plotting import WRONG, new_figure, style_axes
from vitlab.training.alarms import Alarm

# Measure → the title of its panel.
PANELS = {
    "entropy": "attention entropy (1 = uniform)",
    "distance": "attention distance (patches)",
    "largest_score": "largest attention score",
    "residual_norm": "norm of the residual stream",
    "feature_norm": "norm of the feature",
    "near_zero": "share near zero after GELU",
    "dead": "share of dead units",
    "gradient_norm": "gradient norm before clipping",
    "clipped_share": "share of clipped steps",
    "update_ratio": "update / weights, one step",
    "class_accuracy": "validation accuracy by class",
}
LOGARITHMIC = ("update_ratio", "gradient_norm")
MOST_EPOCHS = 8  # in attention_over_training.png


def plot_diagnostics(rows: Sequence[Mapping[str, Any]], alarms: Sequence[Alarm]) -> Figure:
    """Draw a panel a measure over the epochs, a line a layer: the mean over its heads, and their range."""
    measures = [measure for measure in PANELS if any(row["measure"] == measure for row in rows)]
    across = 3
    down = -(-len(measures) // across)
    figure = new_figure(width=4.6 * across, height=3 * down + 0.3 * bool(alarms))
    grid = figure.subplots(down, across, squeeze=False).flatten()
    for axes in grid[len(measures) :]:
        axes.axis("off")
    for axes, measure in zip(grid, measures, strict=False):
        own = [row for row in rows if row["measure"] == measure]
        layers = list(dict.fromkeys(row["layer"] for row in own))
        colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(layers)))
        for layer, colour in zip(layers, colours, strict=True):
            values: dict[int, list[float]] = {}
            for row in own:
                if row["layer"] == layer:
                    values.setdefault(row["epoch"], []).append(row["value"])
            epochs, heads = list(values), list(values.values())
            axes.plot(
                epochs, [np.mean(h) for h in heads], color=colour, label=layer, marker="o", markersize=3
            )
            if len(heads[0]) > 1:
                axes.fill_between(
                    epochs, [min(h) for h in heads], [max(h) for h in heads], color=colour, alpha=0.12
                )
        axes.set(title=PANELS[measure], xlabel="epoch")
        if measure in LOGARITHMIC and any(row["value"] > 0 for row in own):
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
        if len(layers) > 1:
            axes.legend(frameon=False, fontsize=6, ncols=1 + len(layers) // 9)
        style_axes(axes)
    if alarms:
        figure.suptitle("\n".join(alarm["message"] for alarm in alarms[:6]), fontsize=7, color=WRONG)
    return figure


def plot_maps(images: np.ndarray, maps: Mapping[int, Tensor]) -> Figure:
    """Draw the last block's attention over images, a line an image and a column an epoch.

    Args:
        images: uint8 (n, C, H, W).
        maps: by epoch, (n, h, w); of many epochs some are drawn, the first and the last among them.
    """
    places = np.linspace(0, len(maps) - 1, min(len(maps), MOST_EPOCHS)).round().astype(int)
    epochs = [sorted(maps)[place] for place in places]
    figure = new_figure(width=1.5 * (1 + len(epochs)), height=1.6 * len(images))
    grid = figure.subplots(len(images), 1 + len(epochs), squeeze=False)
    for number, line in enumerate(grid):
        pixels = images[number].transpose(1, 2, 0)
        line[0].imshow(pixels if pixels.shape[-1] == 3 else pixels[..., 0], cmap="gray", vmin=0, vmax=255)
        for axes, epoch in zip(line[1:], epochs, strict=True):
            own = maps[epoch][number][None, None]
            large = F.interpolate(own, pixels.shape[:2], mode="bilinear", align_corners=False)[0, 0]
            axes.imshow(pixels.mean(-1), cmap="gray", vmin=0, vmax=255)
            axes.imshow(large.numpy(), cmap="viridis", alpha=0.65)
        for axes in line:
            axes.set(xticks=[], yticks=[])
    for axes, epoch in zip(grid[0, 1:], epochs, strict=True):
        axes.set_title(f"epoch {epoch}", fontsize=8)
    return figure


def plot_positions(table: Tensor, grid: tuple[int, int]) -> Figure:
    """Draw how alike each position is to all others, in its place (Dosovitskiy et al. 2021, figure 7).

    Args:
        table: (h * w, dim).
        grid: (h, w).
    """
    unit = F.normalize(table, dim=1)
    alike = (unit @ unit.T).unflatten(1, grid)  # (h * w, h, w)
    figure = new_figure(width=0.7 * grid[1] + 1, height=0.7 * grid[0] + 0.4)
    panels = figure.subplots(*grid, squeeze=False)
    for axes, own in zip(panels.flatten(), alike, strict=True):
        drawn = axes.imshow(own.numpy(), cmap="viridis", vmin=-1, vmax=1)
        axes.set(xticks=[], yticks=[])
    figure.colorbar(drawn, ax=panels, fraction=0.03, label="cosine similarity")
    figure.suptitle("positions: how alike each is to all others", fontsize=9)
    return figure
