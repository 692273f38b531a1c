"""What the figures of every room share: how they are made, their colours and their style."""

import contextlib
import io
import math
import warnings
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vitlab.core.files import write_atomic

matplotlib.rcParams["text.parse_math"] = False  # names of classes and data sets may hold a $
RIGHT, WRONG = "#2a7f3f", "#c0392b"
TRAIN, VAL, RATE = "#1f77b4", "#d95f02", "#555555"
GREY = "#b8bec6"


def new_figure(*, width: float, height: float, dpi: float | None = None) -> Figure:
    """Return an empty figure of this size in inches."""
    # Not pyplot: it keeps every figure alive and picks a display.
    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


@contextlib.contextmanager
def _any_script() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # class names in a script that the font lacks
        yield


def rasterize(figure: Figure) -> np.ndarray:
    """Return the figure as a picture: (H, W, 3) uint8."""
    canvas = FigureCanvasAgg(figure)
    with _any_script():
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def save_figure(figure: Figure, path: Path) -> None:
    """Write the figure as a PNG, whole or not at all."""
    picture = io.BytesIO()
    with _any_script():
        figure.savefig(picture, format="png", dpi=110, bbox_inches="tight")
    write_atomic(path, picture.getvalue())


def hide_spines(axes: Axes) -> None:
    """Leave only the left and the lower edge of the axes."""
    axes.spines[["top", "right"]].set_visible(False)


def style_axes(axes: Axes) -> None:
    """Give the axes a light grid and only two edges."""
    hide_spines(axes)
    axes.grid(alpha=0.25)


def shorten_name(name: str, longest: int = 18) -> str:
    """Return the name, cut to so many characters."""
    return name if len(name) <= longest else name[: longest - 1] + "…"


def numbers_first(text: str) -> tuple[bool, float, str]:
    """Return a key that sorts numbers by their value, and other words after them."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    return (True, 0.0, text) if math.isnan(number) else (False, number, text)
