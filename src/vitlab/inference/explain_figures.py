"""The figures of an explanation: maps over their images, in a scale that every eye can read."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vitlab.core.console import printable
from vitlab.core.plotting import RIGHT, WRONG, new_figure
from vitlab.inference.attribution import enlarge

SIDE = 2.4  # inches of a panel
COLOURS = "viridis"  # as bright as large, for the colour-blind and in grey too
OPAQUE = 0.65  # a map is over its image


@dataclass(frozen=True)
class Picture:
    """An image to be explained.

    Attributes:
        name: of the file, or which test image.
        pixels: uint8 (C, H, W), as the network's data are stored.
        shown: uint8 (H, W, 3), as a person sees it.
        label: its class, where that is known.
    """

    name: str
    pixels: np.ndarray
    shown: np.ndarray
    label: int | None


@dataclass(frozen=True)
class Explained:
    """What a network says of an image, and why.

    Attributes:
        picture: the image.
        probabilities: of the K classes.
        maps: by method, (h, w).
        heads: attention of each block and head to the patches, (depth, heads, h, w), where it is asked for.
    """

    picture: Picture
    probabilities: Sequence[float]
    maps: dict[str, np.ndarray]
    heads: np.ndarray | None

    @property
    def predicted(self) -> int:
        """The most probable class."""
        return int(np.argmax(self.probabilities))

    @property
    def right(self) -> bool:
        """Whether that is its label."""
        return self.predicted == self.picture.label

    def record(self, classes: Sequence[str]) -> dict[str, Any]:
        """Return what ``explain.json`` says of it."""
        label = self.picture.label
        return {
            "image": self.picture.name,
            "class": classes[self.predicted],
            "probability": self.probabilities[self.predicted],
            "label": None if label is None else classes[label],
            "maps": {method: found.tolist() for method, found in self.maps.items()},
        }


def plot_image(item: Explained, classes: Sequence[str]) -> Figure:
    """Draw an image, and over it what each method says."""
    figure = new_figure(width=SIDE * (1 + len(item.maps)), height=SIDE * 1.15)
    first, *panels = np.atleast_1d(figure.subplots(1, 1 + len(item.maps)))
    draw_image(first, item, classes)
    for axes, (method, found) in zip(panels, item.maps.items(), strict=True):
        draw_map(figure, axes, item.picture.shown, found, method)
    return figure


def plot_overview(items: Sequence[Explained], classes: Sequence[str]) -> Figure:
    """Draw images below each other, with the methods beside them."""
    methods = list(items[0].maps)
    figure = new_figure(width=SIDE * (1 + len(methods)), height=SIDE * len(items))
    grid = figure.subplots(len(items), 1 + len(methods), squeeze=False)
    for number, (line, item) in enumerate(zip(grid, items, strict=True)):
        draw_image(line[0], item, classes)
        for axes, method in zip(line[1:], methods, strict=True):
            draw_map(figure, axes, item.picture.shown, item.maps[method], "" if number else method)
    return figure


def plot_heads(
    item: Explained, classes: Sequence[str], layers: Sequence[int], heads: Sequence[int]
) -> Figure:
    """Draw the attention of each layer (a line) and head (a column), and of all heads' mean."""
    assert item.heads is not None
    figure = new_figure(width=SIDE * (1 + len(heads)), height=SIDE * len(layers))
    grid = figure.subplots(len(layers), 1 + len(heads), squeeze=False)
    for line, layer in zip(grid, layers, strict=True):
        columns = [("mean of the heads", item.heads[layer].mean(0))]
        columns += [(f"head {head}", item.heads[layer, head]) for head in heads]
        for axes, (name, found) in zip(line, columns, strict=True):
            draw_map(figure, axes, item.picture.shown, found, f"layer {layer}, {name}")
    figure.suptitle(f"attention to the patches, {caption(item, classes)}", fontsize=10)
    return figure


def caption(item: Explained, classes: Sequence[str]) -> str:
    """Return what the network says an image is, and what it is where that differs."""
    text = f"{classes[item.predicted]} {item.probabilities[item.predicted]:.0%}"
    label = item.picture.label
    return text if label in (None, item.predicted) else f"{text}, is {classes[label]}"


def draw_image(axes: Axes, item: Explained, classes: Sequence[str]) -> None:
    """Draw the image with what the network says it is."""
    axes.imshow(item.picture.shown)
    wrong = item.picture.label is not None and not item.right
    colour = "black" if item.picture.label is None else WRONG if wrong else RIGHT
    axes.set_title(f"{printable(item.picture.name)}\n{caption(item, classes)}", fontsize=8, color=colour)
    axes.set(xticks=[], yticks=[])


def blend(shown: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Return a map (h, w) over the grey image, uint8 (H, W, 3), as `draw_map` draws it."""
    large = enlarge(torch.from_numpy(found)[None], shown.shape[:2])[0].clamp(min=0).numpy()
    colours = colormaps[COLOURS](large / max(float(large.max()), 1e-12))[..., :3] * 255
    return (OPAQUE * colours + (1 - OPAQUE) * shown.mean(-1, keepdims=True)).round().astype(np.uint8)


def draw_map(figure: Figure, axes: Axes, shown: np.ndarray, found: np.ndarray, title: str) -> None:
    """Draw a map (h, w) over the grey image, at the image's own pixels, with its scale.

    What speaks against the class is drawn as nothing.
    """
    height, width = shown.shape[:2]
    large = enlarge(torch.from_numpy(found)[None], (height, width))[0].clamp(min=0).numpy()
    axes.imshow(shown.mean(-1), cmap="gray", vmin=0, vmax=255)
    top = max(float(large.max()), 1e-12)
    drawn = axes.imshow(large, cmap=COLOURS, alpha=OPAQUE, vmin=0, vmax=top)
    scale = figure.colorbar(drawn, ax=axes, fraction=0.046, pad=0.02, ticks=[0, top / 2, top], format="%.2g")
    scale.ax.tick_params(labelsize=6)
    axes.set_title(title, fontsize=8)
    axes.set(xticks=[], yticks=[])
