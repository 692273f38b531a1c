"""Near-duplicates of training images among the test images, found in the pixels of any data set.

Two steps. Candidates: for each test image the training images whose coarse detail is most like its own, or
like that of its mirror image. Verification: the correlation of all their detail, over small shifts.

Detail is what lies between `FINE` and `COARSE` pixels, of images of `SIDE`. Without what is finer, compressed
copies stay copies; without what is coarser, not every ship under a blue sky is one (see
``experiments/near_duplicates``). Brightness, contrast and the colour of the light do not count. So images
without any detail are all alike.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from vitlab.core.plotting import new_figure

THRESHOLD = 0.08  # the largest distance of a pair; chosen by looking, see experiments/near_duplicates
SIDE = 32  # pixels to which all images are brought
FINE, COARSE = 3, 17  # pixels, sides of the squares over which detail is averaged, and its surroundings
CELLS = 8  # along a side of a coarse description
CANDIDATES = 4  # training images that are verified for each test image, at most
LIKELY = 0.65  # correlation of coarse detail from which on a candidate is verified
SHIFT = 2  # pixels, in each direction
FLOOR = 1.0  # levels: detail below is rounding
CHUNK = 256  # images, or pairs of them, at a time

METHOD = (
    f"Distance is 1 - correlation of the detail between {FINE} and {COARSE} pixels, of images of {SIDE} "
    f"pixels, the best over shifts up to {SHIFT} pixels and mirroring; the nearest of {CANDIDATES} "
    f"candidates is a near-duplicate up to {THRESHOLD}."
)


@dataclass(frozen=True)
class Pairs:
    """Test images that have a near-duplicate among the training images, the nearest pairs first.

    Attributes:
        test_rows: int64 (n,), each once.
        train_rows: int64 (n,), the training image that is nearest to each.
        distance: float (n,), 0 for a copy, up to `THRESHOLD`.
    """

    test_rows: Tensor
    train_rows: Tensor
    distance: Tensor


@torch.no_grad()
def find(train: Tensor, test: Tensor) -> Pairs:
    """Return the near-duplicates of training images among test images.

    Args:
        train: uint8 (M, C, H, W).
        test: uint8 (N, C, H, W), with as many channels.
    """
    known = torch.cat([_describe(chunk) for chunk in train.split(CHUNK)])  # (M, C * CELLS² + 1)
    nearest = [_find_candidates(chunk, known) for chunk in test.split(CHUNK)]
    likely, columns, mirrored = (torch.cat(part) for part in zip(*nearest, strict=True))  # (N, CANDIDATES)
    rows, places = (likely >= LIKELY).nonzero(as_tuple=True)
    columns, mirrored = columns[rows, places], mirrored[rows, places]  # (P,) pairs, by test image
    parts = [part.split(CHUNK) for part in (rows, columns, mirrored)]
    distances = [_measure(test[row], train[column], flip) for row, column, flip in zip(*parts, strict=True)]
    distance = torch.cat(distances)
    order = distance.argsort(stable=True)
    order = order[distance[order] <= THRESHOLD]
    # The first of each test image in this order is its nearest.
    _, first = np.unique(rows[order].cpu().numpy(), return_index=True)
    kept = order[torch.from_numpy(np.sort(first)).to(order.device)]
    return Pairs(rows[kept].cpu(), columns[kept].cpu(), distance[kept].cpu())


def _find_candidates(images: Tensor, known: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return similarity, row in ``known``, and whether mirrored, of those most like each image: (n, k)."""
    straight, mirrored = (_describe(side) @ known.T for side in (images, images.flip(3)))  # (n, M)
    best, rows = torch.maximum(straight, mirrored).topk(min(CANDIDATES, len(known)))
    return best, rows, (mirrored > straight).gather(1, rows)


def _describe(images: Tensor) -> Tensor:
    """Return the coarse detail of uint8 images (n, C, H, W): (n, C * CELLS² + 1) of length 1."""
    return _normalize(F.adaptive_avg_pool2d(_detail(images), CELLS).flatten(1))


def _measure(test: Tensor, train: Tensor, mirrored: Tensor) -> Tensor:
    """Return the distances (n,) of pairs of uint8 images (n, C, H, W), test images mirrored where so said."""
    moving, fixed = _detail(test), _detail(train)
    moving = torch.where(mirrored[:, None, None, None], moving.flip(3), moving)
    inner = SIDE - 2 * SHIFT
    fixed = _normalize(fixed[..., SHIFT:-SHIFT, SHIFT:-SHIFT].flatten(1))
    best = torch.full((len(fixed),), torch.inf, device=fixed.device)
    for top in range(2 * SHIFT + 1):
        for left in range(2 * SHIFT + 1):
            window = _normalize(moving[..., top : top + inner, left : left + inner].flatten(1))
            best = torch.minimum(best, (window - fixed).square_().sum(1) / 2)
    return best  # half the squared difference of unit vectors: 1 - their correlation


def _detail(images: Tensor) -> Tensor:
    """Return uint8 images (n, C, H, W) without their finest and coarsest structure: (n, C, SIDE, SIDE)."""
    pixels = images.float()
    if pixels.shape[2:] != (SIDE, SIDE):
        pixels = F.interpolate(pixels, (SIDE, SIDE), mode="bilinear", antialias=True)
    fine, coarse = (_mean_over(width).to(pixels.device) for width in (FINE, COARSE))
    return fine @ pixels @ fine.T - coarse @ pixels @ coarse.T


def _mean_over(width: int) -> Tensor:
    """Return the matrix (SIDE, SIDE) that averages each pixel with those up to ``width // 2`` beside it."""
    places = torch.arange(SIDE)
    near = (places[:, None] - places).abs() <= width // 2
    return near / near.sum(1, keepdim=True)


def _normalize(vectors: Tensor) -> Tensor:
    """Return vectors (n, d) as (n, d + 1) of length 1.

    The last value is what they lack to it where nothing but rounding is in them: images without detail then
    correlate with each other, and with nothing else.
    """
    least = FLOOR * vectors.shape[1] ** 0.5
    lengths = vectors.norm(dim=1, keepdim=True) / least
    return torch.cat([F.normalize(vectors, dim=1, eps=least), (1 - lengths**2).clamp(min=0).sqrt()], dim=1)


def plot_pairs(
    pairs: Pairs,
    train: Tensor,
    test: Tensor,
    number: int = 8,
    *,
    train_names: Sequence[str] | None = None,
    test_names: Sequence[str] | None = None,
) -> Figure:
    """Draw pairs, chosen evenly from the nearest to the furthest: the test image above the training image.

    Args:
        pairs: one or more.
        train: uint8 (M, C, H, W).
        test: uint8 (N, C, H, W).
        number: of pairs, where there are as many.
        train_names: the class of each of M images.
        test_names: the class of each of N images.
    """
    chosen = np.unique(np.linspace(0, len(pairs.distance) - 1, number).round().astype(int)).tolist()
    figure = new_figure(width=1.3 * len(chosen), height=3.4)
    grid = figure.subplots(2, len(chosen), squeeze=False)
    lines = (("test", pairs.test_rows, test, test_names), ("training", pairs.train_rows, train, train_names))
    for line, (part, rows, images, names) in zip(grid, lines, strict=True):
        line[0].set_ylabel(f"{part} image", fontsize=8)
        for axes, place in zip(line, chosen, strict=True):
            row = int(rows[place])
            axes.imshow(images[row].expand(3, -1, -1).permute(1, 2, 0).cpu().numpy())
            axes.set(xticks=[], yticks=[])
            axes.set_xlabel(f"{row}" + (f" {names[row]}" if names else ""), fontsize=7)
    for axes, place in zip(grid[0], chosen, strict=True):
        axes.set_title(f"{pairs.distance[place]:.3f}", fontsize=8)
    figure.suptitle(f"{len(pairs.distance)} near-duplicates, by distance", fontsize=9)
    return figure
