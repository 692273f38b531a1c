"""Erasing a box of each image: random erasing and cutout."""

import math

import torch
from torch import Tensor

from vitlab.augment.base import ImageOp, to_pixels
from vitlab.augment.boxes import draw_sides, inside, place, place_around, size_of
from vitlab.augment.checks import check_number, check_range, check_whole, check_word

VALUES = ("zero", "mean", "random")


class Erase(ImageOp):
    """Erase a box of some images; a subclass draws the boxes.

    Args:
        p: probability of an image to lose a box.
        value: what the box holds: ``zero`` (black), ``mean`` (of the image itself, one value a
            channel), ``random`` (noise, uniform over 0..255 or 0..1, a value for each pixel and
            channel).

    Raises:
        UserError: for a value out of its range.

    Attributes:
        extent: name of the option that sets how large a box is.
    """

    extent: str

    def __init__(self, *, p: float, value: str) -> None:
        super().__init__()
        check_number(self, "p", p, 0, 1)
        check_word(self, "value", value, VALUES)
        self.p = p
        self.value = value

    def draw(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Draw the boxes (B, 4), int64: top, left, height, width; for noise also a strip of it, uint8
        (2 * C * H * W,), and where in it each image's begins (B,).

        Noise for every pixel of every image would cost more than all the rest, and a generator on the
        device other noise on every device. So the images share one strip, new in each batch, each from
        a place of its own on.
        """
        marked = torch.rand(len(images), generator=generator) < self.p
        boxes = self.draw_boxes(images, generator) * marked[:, None]
        if self.value != "random":
            return (boxes,)
        pixels = math.prod(images.shape[1:])
        strip = torch.randint(0, 256, (2 * pixels,), generator=generator, dtype=torch.uint8)
        return boxes, strip, torch.randint(0, pixels + 1, (len(images),), generator=generator)

    def draw_boxes(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Draw a box (B, 4) for each image, int64: top, left, height, width."""
        raise NotImplementedError

    def largest_share(self, height: int, width: int) -> float:
        """Return the most of an image's area that one draw erases, 0..1."""
        raise NotImplementedError

    def transform(self, images: Tensor, *drawn: Tensor) -> Tensor:
        """Erase the boxes in (B, C, H, W)."""
        boxes, *noise = drawn
        if images.numel() == 0:
            return images
        erased = inside(boxes, images, images.dtype)  # (B, 1, H, W)
        # Products with ones and zeros: ten times as fast on a CPU as torch.where on uint8.
        kept = images * (1 - erased)
        if self.value == "zero":
            return kept
        if self.value == "mean":
            fill = to_pixels(images.float().mean((2, 3), keepdim=True), images.dtype)  # (B, C, 1, 1)
        else:
            strip, starts = noise
            runs = strip.unfold(0, len(strip) // 2, 1)  # a view: (C * H * W + 1, C * H * W)
            fill = runs.index_select(0, starts).view(images.shape)
            if images.is_floating_point():
                fill = fill.to(images.dtype) / 255
        return kept + fill * erased


class RandomErasing(Erase):
    """Erase a rectangle somewhere in some images.

    Zhong et al. 2020, "Random Erasing Data Augmentation", section 3.2, with the ten tries of
    torchvision's; an image in which none fits stays as it is.

    Args:
        p: probability of an image to lose a box.
        min_area, max_area: share of the image's area, uniform between them.
        min_ratio, max_ratio: height over width, log-uniform between them.
        value: what the box holds: see ``Erase``.

    Raises:
        UserError: for a value out of its range.
    """

    extent = "max_area"

    def __init__(
        self, *, p: float, min_area: float, max_area: float, min_ratio: float, max_ratio: float, value: str
    ) -> None:
        super().__init__(p=p, value=value)
        check_range(self, "area", min_area, max_area, 0, 1)
        check_range(self, "ratio", min_ratio, max_ratio, 0.001, 1000)
        self.area = min_area, max_area
        self.ratio = min_ratio, max_ratio

    def draw_boxes(self, images: Tensor, generator: torch.Generator) -> Tensor:
        size = size_of(images)
        pixels = images.shape[2] * images.shape[3]
        sides, found = draw_sides(
            len(images),
            area=(self.area[0] * pixels, self.area[1] * pixels),
            ratio=self.ratio,
            least=0,
            most=size - 1,  # as in torchvision's: never a whole side
            generator=generator,
        )
        return place(sides * found, size, generator)

    def largest_share(self, height: int, width: int) -> float:
        return self.area[1]


class Cutout(Erase):
    """Erase a square around a centre anywhere in some images, cut off at the border.

    DeVries & Taylor 2017, "Improved Regularization of Convolutional Neural Networks with Cutout",
    section 3.2: 16 pixels for CIFAR-10, 8 for CIFAR-100, in every image, after normalisation, where
    zero is the mean; ``value: mean`` comes closest to that.

    Args:
        size: side of the square in pixels.
        p: probability of an image to lose a square.
        value: what the square holds: see ``Erase``.

    Raises:
        UserError: for a value out of its range.
    """

    extent = "size"

    def __init__(self, *, size: int, p: float, value: str) -> None:
        super().__init__(p=p, value=value)
        check_whole(self, "size", size, 1)
        self.size = size

    def draw_boxes(self, images: Tensor, generator: torch.Generator) -> Tensor:
        sides = torch.full((len(images), 2), self.size)
        return place_around(sides, size_of(images), generator)

    def largest_share(self, height: int, width: int) -> float:
        return min(self.size, height) * min(self.size, width) / (height * width)
