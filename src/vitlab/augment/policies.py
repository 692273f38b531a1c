"""Which operations are applied to an image, and how strongly: the published policies, drawn per image."""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from vitlab.augment.base import ImageOp, to_uint8
from vitlab.augment.pixels import OPS, apply_ops
from vitlab.augment.searched import POLICIES


class Scale(NamedTuple):
    """How a strength from 0 to 1 becomes the value of an operation: ``offset ± step(slope * strength)``."""

    offset: float = 0.0
    slope: float = 0.0
    signed: bool = False  # the sign is drawn
    step: str = "exact"  # exact | truncate | round
    of_side: bool = False  # slope is a share of the image's width (translate_x) or height (translate_y)


Space = dict[str, Scale]  # a key is one operation or several that are scaled alike

# Cubuk et al. 2020, "RandAugment", section 3.1 and figure 2, with the ranges of AutoAugment's table 6.
# Solarize and posterize grow stronger with the strength, as in torchvision.
PAPER: Space = {
    "identity": Scale(),
    "shear_x shear_y": Scale(slope=0.3, signed=True),
    "translate_x translate_y": Scale(slope=150 / 331, signed=True, step="truncate", of_side=True),
    "rotate": Scale(slope=30, signed=True),
    "brightness color contrast sharpness": Scale(offset=1, slope=0.9, signed=True),
    "posterize": Scale(offset=8, slope=-4, step="round"),
    "solarize": Scale(offset=255, slope=-255),
    "autocontrast equalize": Scale(),
}

# timm's "increasing" set (`rand-…-inc1`): 15 operations, every one stronger with the strength.
TIMM: Space = {
    "autocontrast equalize invert": Scale(),
    "rotate": Scale(slope=30, signed=True),
    "posterize": Scale(offset=4, slope=-4, step="truncate"),
    "solarize": Scale(offset=256, slope=-256, step="truncate"),
    "solarize_add": Scale(slope=110, step="truncate"),
    "color contrast brightness sharpness": Scale(offset=1, slope=0.9, signed=True),
    "shear_x shear_y": Scale(slope=0.3, signed=True),
    "translate_x translate_y": Scale(slope=0.45, signed=True, of_side=True),
}

# Müller and Hutter 2021, "TrivialAugment", table 1, the "wide" space.
WIDE: Space = PAPER | {  # in the order of the paper's space
    "shear_x shear_y": Scale(slope=0.99, signed=True),
    "translate_x translate_y": Scale(slope=32, signed=True, step="truncate"),
    "rotate": Scale(slope=135, signed=True),
    "brightness color contrast sharpness": Scale(offset=1, slope=0.99, signed=True),
    "posterize": Scale(offset=8, slope=-6, step="round"),
}

SPACES = {"paper": (PAPER, 30.0), "timm": (TIMM, 10.0)}  # operations, and the magnitude that is full strength


def _places(names: Iterable[str]) -> Tensor:
    """Return the places of operations in ``OPS``."""
    return torch.tensor([OPS.index(name) for name in names])


class Policy(ImageOp):
    """Apply to each image a few operations in turn; a subclass draws which.

    Float images are brought to 256 levels first: half of the operations are defined on levels.

    Args:
        interpolation: of rotations, shears and translations: ``nearest`` (as the papers and torchvision)
            or ``bilinear``. Either mixes in ``fill`` at the border alone.
        fill: level of what comes from outside the image: one number, or one a channel, 0..255.

    Raises:
        ValueError: when called, ``fill`` has as many levels as the images have no channels.
    """

    def __init__(self, *, interpolation: str, fill: int | list[int]) -> None:
        super().__init__()
        self.interpolation = interpolation
        self.fill = torch.tensor(fill, dtype=torch.float32).flatten()

    def forward(self, images: Tensor, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Augment images (B, C, H, W); targets (B, K) stay as they are."""
        # The draws stay on the CPU: `apply_ops` sorts the images by them.
        return self.apply_to(images, targets, *self.draw(images, generator))

    def transform(self, images: Tensor, ops: Tensor, values: Tensor) -> Tensor:
        """Apply ``ops`` (S, B), places in ``OPS``, with ``values`` (S, B), one after the other."""
        if len(self.fill) not in (1, images.shape[1]):
            raise ValueError(f"{len(self.fill)} levels of fill for {images.shape[1]} channel(s)")
        pixels = images if images.dtype == torch.uint8 else to_uint8((images * 255).round())
        pixels = apply_ops(pixels, ops, values, interpolation=self.interpolation, fill=self.fill)
        return pixels if images.dtype == torch.uint8 else (pixels / 255).to(images.dtype)


class _Strength:
    """Values of a space's operations for many images at once."""

    def __init__(self, space: Space) -> None:
        scales = {name: scale for names, scale in space.items() for name in names.split()}
        self.ops = _places(scales)
        rows = [scales.get(name, Scale()) for name in OPS]
        offset, slope, signed, step, of_side = zip(*rows, strict=True)
        self.offset, self.slope = torch.tensor((offset, slope), dtype=torch.float32)
        self.signed = torch.tensor(signed)
        # Of what the slope is a share: 0 of 1, 1 of the image's width, 2 of its height.
        self.side = torch.tensor(of_side) * (1 + (torch.arange(len(OPS)) == OPS.index("translate_y")))
        self.whole = torch.tensor([name != "exact" for name in step])
        self.half = torch.tensor([math.copysign(0.5, row.slope) * (row.step == "round") for row in rows])

    def draw_ops(self, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
        """Draw from the space's operations, each as often."""
        return self.ops[torch.randint(len(self.ops), shape, generator=generator)]

    def values(self, ops: Tensor, strength: Tensor, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return the values of ``ops`` at ``strength`` 0..1, both of one shape, with signs drawn."""
        height, width = images.shape[-2:]
        slope = self.slope * torch.tensor([1, width, height])[self.side]
        change = slope[ops] * strength
        change = torch.where(self.whole[ops], (change + self.half[ops]).trunc_(), change)
        negative = torch.rand(ops.shape, generator=generator) < 0.5
        change = torch.where(self.signed[ops] & negative, -change, change)
        return self.offset[ops] + change


class RandAugment(Policy):
    """``num_ops`` operations for each image, drawn evenly, all at one magnitude.

    Cubuk et al. 2020, "RandAugment: Practical automated data augmentation with a reduced search space".
    timm's ``rand-m9-mstd0.5-inc1`` is magnitude 9, magnitude_std 0.5, p 0.5, space timm (except for its
    bicubic interpolation and its gray fill; fill=128 gives the latter).

    Args:
        num_ops: N, operations an image.
        magnitude: M; full strength is 30 in the paper's space and 10 in timm's.
        magnitude_std: deviation of a normal noise on M, drawn for each operation; 0 for none.
        p: probability of each operation; otherwise the image skips it.
        space: ``paper``, 14 operations with the identity, or ``timm``, 15 "increasing" ones.
        interpolation, fill: see `Policy`.

    Raises:
        ValueError: a magnitude beyond the space's full strength.
    """

    def __init__(
        self,
        *,
        num_ops: int,
        magnitude: float,
        magnitude_std: float,
        p: float,
        space: str,
        interpolation: str,
        fill: int | list[int],
    ) -> None:
        super().__init__(interpolation=interpolation, fill=fill)
        operations, self.full = SPACES[space]
        if not 0 <= magnitude <= self.full:
            raise ValueError(f"magnitude={magnitude} is not from 0 to {self.full:g} (space={space})")
        self.num_ops = num_ops
        self.magnitude = magnitude
        self.magnitude_std = magnitude_std
        self.p = p
        self.strength = _Strength(operations)

    def draw(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw operations and values, both (num_ops, B)."""
        shape = (self.num_ops, len(images))
        ops = self.strength.draw_ops(shape, generator)
        noise = torch.randn(shape, generator=generator) * self.magnitude_std
        magnitude = (self.magnitude + noise).clamp_(0, self.full)
        values = self.strength.values(ops, magnitude / self.full, images, generator)
        return ops * (torch.rand(shape, generator=generator) < self.p), values


class TrivialAugment(Policy):
    """One operation for each image at an even strength, from the wide space.

    Müller and Hutter 2021, "TrivialAugment: Tuning-free Yet State-of-the-Art Data Augmentation".

    Args:
        num_levels: strengths to draw from, evenly spaced from 0 to 1; the paper's 31.
        interpolation, fill: see `Policy`.
    """

    def __init__(self, *, num_levels: int, interpolation: str, fill: int | list[int]) -> None:
        super().__init__(interpolation=interpolation, fill=fill)
        self.num_levels = num_levels
        self.strength = _Strength(WIDE)

    def draw(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw operations and values, both (1, B)."""
        shape = (1, len(images))
        ops = self.strength.draw_ops(shape, generator)
        level = torch.randint(self.num_levels, shape, generator=generator) / (self.num_levels - 1)
        return ops, self.strength.values(ops, level, images, generator)


class AutoAugment(Policy):
    """A pair of operations for each image out of 25 that were found by search, each with its probability.

    Cubuk et al. 2019, "AutoAugment: Learning Augmentation Strategies from Data", tables 7 and 9.

    Args:
        policy: ``cifar10`` or ``imagenet``.
        interpolation, fill: see `Policy`.
    """

    def __init__(self, *, policy: str, interpolation: str, fill: int | list[int]) -> None:
        super().__init__(interpolation=interpolation, fill=fill)
        pairs = POLICIES[policy]
        self.ops = torch.stack([_places(op for op, _, _ in pair) for pair in pairs])  # (25, 2)
        self.probabilities = torch.tensor([[p for _, p, _ in pair] for pair in pairs])
        self.levels = torch.tensor([[level / 9 for _, _, level in pair] for pair in pairs])
        self.strength = _Strength(PAPER)

    def draw(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw operations and values, both (2, B)."""
        pair = torch.randint(len(self.ops), (len(images),), generator=generator)
        ops, levels = self.ops[pair].T, self.levels[pair].T  # (2, B)
        values = self.strength.values(ops, levels, images, generator)
        return ops * (torch.rand(ops.shape, generator=generator) < self.probabilities[pair].T), values


class ThreeAugment(Policy):
    """For each image one of grayscale, solarization and Gaussian blur, drawn evenly.

    Touvron et al. 2022, "DeiT III: Revenge of the ViT", section 3 ("3-Augment"), which is followed by colour
    jitter. The blur is in pixels, and was chosen for images of 224.

    Args:
        threshold: level from which on solarization inverts.
        min_sigma: smallest deviation of the blur, in pixels; drawn evenly up to ``max_sigma``.
        max_sigma: largest deviation, at most 2.
    """

    def __init__(self, *, threshold: int, min_sigma: float, max_sigma: float) -> None:
        super().__init__(interpolation="nearest", fill=0)
        self.ops = _places(("color", "solarize", "blur"))  # colour of factor 0 is gray
        self.threshold = threshold
        self.min_sigma = min_sigma
        self.max_sigma = max_sigma

    def draw(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw operations and values, both (1, B)."""
        choice = torch.randint(3, (len(images),), generator=generator)
        sigma = torch.rand(len(images), generator=generator)
        sigma = self.min_sigma + (self.max_sigma - self.min_sigma) * sigma
        thresholds = torch.full_like(sigma, self.threshold)
        values = torch.stack([torch.zeros_like(sigma), thresholds, sigma])  # (3, B)
        return self.ops[choice][None], values.gather(0, choice[None])


class ColorJitter(Policy):
    """Change brightness, contrast and colour of each image, in an order drawn for it.

    Args:
        brightness: largest change x of the factor, 0..1, which is drawn evenly from 1 - x to 1 + x.
        contrast: the same of contrast.
        color: the same of colour.
    """

    def __init__(self, *, brightness: float, contrast: float, color: float) -> None:
        super().__init__(interpolation="nearest", fill=0)
        self.ops = _places(("brightness", "contrast", "color"))
        self.changes = torch.tensor([float(brightness), float(contrast), float(color)])

    def draw(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw operations and values, both (3, B)."""
        shape = (3, len(images))
        order = torch.rand(shape, generator=generator).argsort(0)  # a permutation in each column
        change = torch.rand(shape, generator=generator) * 2 - 1
        return self.ops[order], 1 + self.changes[order] * change
