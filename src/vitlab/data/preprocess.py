"""From pixels to what the model takes: the same module in training, evaluation and inference."""

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Preprocess(nn.Module):
    """(B, C, H, W) pixels of any size → normalised float32 (B, C, height, width).

    uint8 pixels are scaled to 0..1; floating-point pixels must be on that scale already. An image of
    another size is resized on its device, bilinear, with antialiasing.

    Args:
        size: (height, width) of the result in pixels.
        mean: one value a channel, on the 0..1 scale.
        std: the same.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, *, size: Sequence[int], mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.size = (int(size[0]), int(size[1]))
        self.register_buffer("mean", torch.tensor(list(mean), dtype=torch.float32))
        self.register_buffer("std", torch.tensor(list(std), dtype=torch.float32))

    def forward(self, images: Tensor) -> Tensor:
        """Resize and normalise images (B, C, H, W), which stay as they are."""
        if images.ndim != 4 or images.shape[1] != len(self.mean):
            raise ValueError(
                f"expected images of shape (B, {len(self.mean)}, H, W), got {tuple(images.shape)}"
            )
        if images.dtype != torch.uint8 and not images.is_floating_point():
            raise ValueError(f"expected uint8 or floating-point pixels, got {images.dtype}")
        pixels = _resize(images.float(), self.size)
        unit = 1 / 255 if images.dtype == torch.uint8 else 1.0
        # (pixels * unit - mean) / std, in two passes; in place only on what is ours.
        scale = (unit / self.std)[:, None, None]
        shift = (self.mean / self.std)[:, None, None]
        return (pixels * scale if pixels is images else pixels.mul_(scale)).sub_(shift)


def _resize(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(pixels.shape[-2:]) == size:
        return pixels
    return F.interpolate(pixels, size, mode="bilinear", align_corners=False, antialias=True)


def resize_pixels(images: Tensor, size: Sequence[int]) -> Tensor:
    """Return uint8 images (B, C, H, W) as `Preprocess` resizes them to (height, width), in whole levels."""
    return _resize(images.float(), (int(size[0]), int(size[1]))).round().to(torch.uint8)


def channel_statistics(chunks: Iterable[Tensor]) -> tuple[list[float], list[float]]:
    """Return mean and deviation of each channel of uint8 images, on the 0..1 scale.

    Exact: sums of integers, however the images are divided. A channel that never varies gets a
    deviation of 1, so that it can be divided by.

    Args:
        chunks: the images, (n, C, H, W) each.
    """
    number, total, squares = 0, torch.zeros((), dtype=torch.int64), torch.zeros((), dtype=torch.int64)
    for chunk in chunks:
        wide = chunk.to(torch.int32)
        total = total + wide.sum((0, 2, 3), dtype=torch.int64)  # (C,)
        squares = squares + wide.square_().sum((0, 2, 3), dtype=torch.int64)
        number += chunk.numel() // chunk.shape[1]
    sums = list(zip(total.tolist(), squares.tolist(), strict=True))
    variances = [(number * q - s * s) / number**2 for s, q in sums]  # Python's integers: nothing cancels
    return [s / number / 255 for s, _ in sums], [v**0.5 / 255 if v > 0 else 1.0 for v in variances]
