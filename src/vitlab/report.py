"""What a run leaves to look at: figures, and the summary on the screen."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from torch import nn

from vitlab.folder import RunFolder

WIDTH = 120  # of lines in files
GRID = 40  # images in predictions.png


class Screen:
    """Print to the terminal and, the same lines, to ``train.log``.

    Args:
        quiet: of ranks other than 0: print nothing anywhere.
    """

    def __init__(self, folder: RunFolder, *, quiet: bool = False) -> None:
        self.console = Console(quiet=quiet, highlight=False, soft_wrap=True)
        if not self.console.is_terminal:
            self.console = Console(quiet=quiet, highlight=False, soft_wrap=True, width=WIDTH)
        self._file = None if quiet else open(folder.log, "a", encoding="utf-8")  # noqa: SIM115
        self._log = Console(file=self._file, width=WIDTH, quiet=quiet, highlight=False, soft_wrap=True)

    def print(self, *objects: Any) -> None:
        self.console.print(*objects)
        self.log(*objects)

    def log(self, *objects: Any) -> None:
        self._log.print(*objects, markup=False)
        if self._file is not None:
            self._file.flush()


def save(figure: Figure, folder: RunFolder, name: str) -> None:
    folder.figures.mkdir(exist_ok=True)
    figure.savefig(folder.figures / f"{name}.png", dpi=110)


@torch.no_grad()
def predict_some(
    net: nn.Module,
    preprocess: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    device: torch.device,
) -> tuple[np.ndarray, list[int], np.ndarray]:
    """Classify test images spread evenly over the split, which is ordered by class in an image folder.

    Evenly, and not picked by how they turn out: the grid shows as many mistakes as there are.

    Args:
        images: uint8 (N, C, H, W).
        labels: int64 (N,).

    Returns:
        images (n, C, H, W), labels, and probabilities (n, K); n is at most 40.
    """
    rows = torch.linspace(0, len(images) - 1, min(GRID, len(images))).round().long().to(images.device)
    some = images[rows].to(device)
    net.eval()
    # `forward`, not a call: a compiled network would be compiled again for this one batch's shape.
    probabilities = net.forward(preprocess.to(device)(some)).float().softmax(-1)
    return some.cpu().numpy(), labels[rows].tolist(), probabilities.cpu().numpy()


def describe(screen: Screen, lines: Sequence[tuple[str, str]]) -> None:
    """Print a block of ``name  value`` lines."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold cyan", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in lines:
        grid.add_row(name, value)
    screen.print(grid)


def results(screen: Screen, folder: RunFolder, summary: Mapping[str, Any]) -> None:
    """Print what the run reached and where to look next."""
    metrics, train = summary["metrics"], summary["train"]
    lines = []
    for split in ("val", "test"):
        if f"{split}/accuracy" in metrics:
            which = f"  ({summary['tested']})" if split == "test" else ""
            text = f"accuracy {metrics[f'{split}/accuracy']:.2%}  loss {metrics[f'{split}/loss']:.4f}{which}"
            lines.append((split, text))
    rate = train["images_per_second"]
    speed = f"{rate:,.0f} images/s" if rate else "too short to measure"
    lines += [
        (
            "training",
            f"{train['optimizer_steps']:,} steps, {speed}, {clock(train['wall_seconds'])} in all",
        ),
        ("figures", str(folder.figures)),
        ("watch", "tensorboard --logdir outputs"),
        ("summary", str(folder.summary)),
    ]
    screen.print()
    describe(screen, lines)


def clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
