"""Elementary operations on a batch: one draw for each image, no loop over images.

They are gathers of whole rows or whole images: several times faster on a CPU than indexing pixels, and
the augmentation shares the cores with the training.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vitlab.augment.base import ImageOp
from vitlab.augment.pixels import reflected


class RandomCrop(ImageOp):
    """Shift each image by up to ``padding`` pixels each way, as a crop of the padded image.

    He et al. 2016, "Deep Residual Learning for Image Recognition", section 4.2.

    Args:
        padding: pixels added on every side, 0 or more.
        padding_mode: what they hold: ``zero`` (black) or ``reflect`` (the image, mirrored at its border).

    Raises:
        ValueError: when called, for a reflection wider than the image.
    """

    def __init__(self, *, padding: int, padding_mode: str) -> None:
        super().__init__()
        self.padding = padding
        self.padding_mode = padding_mode

    def draw(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Draw the corners in the padded images: (B,) rows, (B,) columns, 0..2 * padding."""
        return torch.randint(0, 2 * self.padding + 1, (2, len(images)), generator=generator).unbind()

    def transform(self, images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Crop (B, C, H, W) at the corners given."""
        batch, channels, height, width = images.shape
        padded = self._pad(images)
        padded_height, padded_width = padded.shape[-2:]
        # All runs of `width` pixels that follow each other in memory, as a view: (pixels - width + 1, width).
        # A cropped row is one of them, so the crop is a gather of B * C * H rows.
        device = images.device
        plane = torch.arange(batch * channels, device=device).view(batch, channels, 1)
        line = rows[:, None, None] + torch.arange(height, device=device)  # (B, 1, H)
        start = (plane * padded_height + line) * padded_width + columns[:, None, None]  # (B, C, H)
        runs = padded.flatten().unfold(0, width, 1)
        return runs.index_select(0, start.flatten()).view(batch, channels, height, width)

    def _pad(self, images: Tensor) -> Tensor:
        p = self.padding
        if self.padding_mode == "zero":
            return F.pad(images, (p, p, p, p))
        # By index: reflection in torch knows no uint8.
        height, width = images.shape[-2:]
        if p >= min(height, width):
            raise ValueError(f"a reflection of {p} pixels is wider than images of {height} x {width}")
        padded = images.index_select(2, reflected(height, p, images.device))
        return padded.index_select(3, reflected(width, p, images.device))


class RandomFlip(ImageOp):
    """Mirror each image left to right with probability ``p``."""

    def __init__(self, *, p: float) -> None:
        super().__init__()
        self.p = p

    def draw(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor]:
        """Draw which images to mirror: (B,) bool."""
        return (torch.rand(len(images), generator=generator) < self.p,)

    def transform(self, images: Tensor, flip: Tensor) -> Tensor:
        """Mirror those of (B, C, H, W) that are marked."""
        # Both versions, and a gather of whole images: four times as fast on a CPU as torch.where on uint8.
        both = torch.cat((images, images.flip(-1)))
        places = torch.arange(len(images), device=images.device)
        return both.index_select(0, places + len(images) * flip)
