"""Erasing a box of each image: random erasing and cutout."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from vitlab.augment.base import ImageOp, RunFacts, to_pixels
from vitlab.augment.boxes import draw_sides, get_size, make_mask, place_around, place_inside

# Of an image by one box: DeiT's limit, timm's default. Zhong et al. used up to 0.4, but for networks that
# look at pixels: a ViT of few patches loses whole ones.
MOST_ERASED = 1 / 3


class Erase(ImageOp):
    """Erase a box of some images; a subclass draws the boxes.

    Args:
        p: probability of an image to lose a box.
        value: what the box holds: ``zero`` (black), ``mean`` (of the image itself, a value a channel),
            ``random`` (noise, uniform over 0..255 or 0..1, a value a pixel and channel).

    Attributes:
        extent: the option that sets how large a box is.
    """

    extent: str

    def __init__(self, *, p: float, value: str) -> None:
        super().__init__()
        self.p = p
        self.value = value

    def draw(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Draw the boxes (B, 4), int64: top, left, height, width.

        For noise also a strip of it, uint8 (2 * C * H * W,), and where in it each image's begins (B,).
        """
        marked = torch.rand(len(images), generator=generator) < self.p
        boxes = self.draw_boxes(images, generator) * marked[:, None]
        if self.value != "random":
            return (boxes,)
        # Noise for every pixel would cost more than all the rest, and a generator on the device would draw
        # other noise on every device. So the images share one strip, new in each batch.
        pixels = math.prod(images.shape[1:])
        strip = torch.randint(0, 256, (2 * pixels,), generator=generator, dtype=torch.uint8)
        return boxes, strip, torch.randint(0, pixels + 1, (len(images),), generator=generator)

    def draw_boxes(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Draw a box (B, 4) for each image, int64: top, left, height, width."""
        raise NotImplementedError

    def largest_share(self, height: int, width: int) -> float:
        """Return the most of an image's area that one draw erases, 0..1."""
        raise NotImplementedError

    def notes(self, key: str, facts: RunFacts) -> Iterator[str]:
        """Say where more of an image is erased than is usual."""
        share = self.largest_share(*facts.image_size)
        if share > MOST_ERASED:
            patches = facts.num_patches
            whole = f", as much as {round(share * patches)} of its {patches} patches" if patches else ""
            yield (
                f"{key} may erase {share:.0%} of an image{whole}; lower {key}.{self.extent} to keep the "
                "object in sight (at most a third is usual)."
            )
        yield from super().notes(key, facts)

    def transform(self, images: Tensor, boxes: Tensor, *noise: Tensor) -> Tensor:
        """Erase the boxes in (B, C, H, W)."""
        erased = make_mask(boxes, images, images.dtype)  # (B, 1, H, W)
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
        min_area, max_area: limits of the share of the image's area, which is uniform.
        min_ratio, max_ratio: limits of height over width, which is log-uniform.
        p, value: see `Erase`.
    """

    extent = "max_area"

    def __init__(
        self, *, p: float, min_area: float, max_area: float, min_ratio: float, max_ratio: float, value: str
    ) -> None:
        super().__init__(p=p, value=value)
        self.area = min_area, max_area
        self.ratio = min_ratio, max_ratio

    def draw_boxes(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Draw rectangles (B, 4) inside the images, empty where none of the tries fits."""
        size = get_size(images)
        most = size - 1  # as in torchvision's: never a whole side
        sides, found = draw_sides(images, self.area, self.ratio, least=0, most=most, generator=generator)
        return place_inside(sides * found, size, generator)

    def largest_share(self, height: int, width: int) -> float:
        """Return ``max_area``."""
        return self.area[1]


class Cutout(Erase):
    """Erase a square around a centre anywhere in some images, cut off at the border.

    DeVries & Taylor 2017, "Improved Regularization of Convolutional Neural Networks with Cutout",
    section 3.2: 16 pixels for CIFAR-10, 8 for CIFAR-100, in every image, after normalisation, where
    zero is the mean; ``value: mean`` comes closest to that.

    Args:
        size: side of the square in pixels.
        p, value: see `Erase`.
    """

    extent = "size"

    def __init__(self, *, size: int, p: float, value: str) -> None:
        super().__init__(p=p, value=value)
        self.size = size

    def draw_boxes(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Draw squares (B, 4), cut off at the border."""
        sides = torch.full((len(images), 2), self.size)
        return place_around(sides, get_size(images), generator)

    def largest_share(self, height: int, width: int) -> float:
        """Return the square's share of the image."""
        return min(self.size, height) * min(self.size, width) / (height * width)
