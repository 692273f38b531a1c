"""Boxes, one an image: drawing them, and masks of the pixels inside.

Boxes are int64 (B, 4), top, left, height, width, in pixels; an empty one has a side of 0.
"""

import math

import torch
from torch import Tensor

TRIES = 10


def draw_sides(
    images: Tensor,
    area: tuple[float, float],
    ratio: tuple[float, float],
    *,
    least: int,
    most: Tensor,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Draw heights and widths: the area uniform, height over width log-uniform, the first of ten that fits.

    The distribution of torchvision's RandomErasing and RandomResizedCrop, which try up to ten times.

    Args:
        images: (B, C, H, W), of which the shape alone counts.
        area: smallest and largest share of an image.
        ratio: smallest and largest.
        least: smallest side that fits.
        most: largest height and width that fit, (2,).
        generator: on the CPU.

    Returns:
        Sides, int64 (B, 2), and whether one of the tries fitted, bool (B, 1); where none did, the sides
        are those of a box that is too large.
    """
    shape = len(images), TRIES
    pixels = images.shape[2] * images.shape[3]
    areas = torch.empty(shape).uniform_(area[0] * pixels, area[1] * pixels, generator=generator)
    ratios = torch.empty(shape).uniform_(*map(math.log, ratio), generator=generator).exp_()
    sides = torch.stack((areas * ratios, areas / ratios), -1).sqrt_().round_().long()  # (B, 10, 2)
    fits = ((sides >= least) & (sides <= most)).all(-1)  # (B, 10)
    first = fits.int().argmax(1)  # of several the first
    return sides[torch.arange(len(images)), first], fits.any(1, keepdim=True)


def place_inside(sides: Tensor, size: Tensor, generator: torch.Generator) -> Tensor:
    """Draw boxes (B, 4) with ``sides`` (B, 2) anywhere inside images of ``size`` (2,)."""
    corners = torch.rand(sides.shape, generator=generator) * (size - sides + 1)
    return torch.cat((corners.long(), sides), 1)


def place_around(sides: Tensor, size: Tensor, generator: torch.Generator) -> Tensor:
    """Draw boxes (B, 4) around centres anywhere in images of ``size`` (2,), cut off at the border."""
    centres = torch.rand(sides.shape, generator=generator) * size
    start = centres.long() - sides // 2
    end = torch.minimum(start + sides, size)
    start.clamp_(min=0)
    return torch.cat((start, end - start), 1)


def get_size(images: Tensor) -> Tensor:
    """Return height and width of (B, C, H, W) as a tensor (2,) on the CPU."""
    return torch.tensor(images.shape[-2:])


def make_mask(boxes: Tensor, images: Tensor, dtype: torch.dtype) -> Tensor:
    """Return 1 for the pixels of (B, C, H, W) in their box and 0 for the others: (B, 1, H, W)."""
    top, left, height, width = boxes[:, :, None].unbind(1)  # (B, 1) each
    row, column = (torch.arange(length, device=boxes.device) for length in images.shape[-2:])
    rows = (row >= top) & (row < top + height)  # (B, H)
    columns = (column >= left) & (column < left + width)  # (B, W)
    # A product of numbers: several times as fast on a CPU as `&` on bool.
    return rows.to(dtype)[:, None, :, None] * columns.to(dtype)[:, None, None, :]
