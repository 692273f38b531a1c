"""The Inception crop: a part of each image, resized to the whole."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vitlab.augment.base import ImageOp, to_pixels
from vitlab.augment.boxes import draw_sides, get_size, place_inside


class RandomResizedCrop(ImageOp):
    """Crop a rectangle of each image and resize it to the image's own size.

    Szegedy et al. 2015, "Going Deeper with Convolutions", section 6, with torchvision's ten tries; where
    none fits, it is the largest central crop of an allowed ratio. Bilinear, never looking outside the
    crop. A crop is never larger than the image, so it is only ever enlarged, and the antialiasing that
    other implementations offer would change nothing.

    Args:
        min_area, max_area: limits of the share of the image, which is uniform; 0.08 and 1 in the paper.
        min_ratio, max_ratio: limits of width over height, which is log-uniform; 3/4 and 4/3 in the paper.
    """

    def __init__(self, *, min_area: float, max_area: float, min_ratio: float, max_ratio: float) -> None:
        super().__init__()
        self.area = min_area, max_area
        self.ratio = min_ratio, max_ratio

    def draw(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor]:
        """Draw the crops (B, 4), int64: top, left, height, width."""
        size = get_size(images)
        low, high = self.ratio
        upright = 1 / high, 1 / low  # height over width
        sides, found = draw_sides(images, self.area, upright, least=1, most=size, generator=generator)
        return (torch.where(found, place_inside(sides, size, generator), self._central(*images.shape[2:])),)

    def _central(self, height: int, width: int) -> Tensor:
        """Return the largest central crop of an allowed ratio: (4,)."""
        low, high = self.ratio
        h, w = min(height, max(1, round(width / low))), min(width, max(1, round(height * high)))
        return torch.tensor(((height - h) // 2, (width - w) // 2, h, w))

    def transform(self, images: Tensor, crops: Tensor) -> Tensor:
        """Resize the crops of (B, C, H, W) to (H, W), in float32; uint8 is rounded to nearest."""
        top, left, height, width = crops[:, :, None].unbind(1)  # (B, 1) each
        y = _positions(top, height, images.shape[2])  # (B, H)
        x = _positions(left, width, images.shape[3])  # (B, W)
        grid = torch.stack(torch.broadcast_tensors(x[:, None, :], y[:, :, None]), -1)  # (B, H, W, 2)
        # One fused pass. Row gathers and products with interpolation matrices were hardly faster at
        # 32 × 32 on a CPU, and two to four times slower at 224 × 224.
        resized = F.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)
        return to_pixels(resized, images.dtype)


def _positions(start: Tensor, side: Tensor, length: int) -> Tensor:
    """Return where the ``length`` pixels come from, (B, length), in grid_sample's -1..1 over the image."""
    pixel = torch.arange(length, device=start.device)
    inside = ((pixel + 0.5) * (side / length) - 0.5).clamp(min=0).minimum(side - 1.0)
    return (2 * (start + inside) + 1) / length - 1
