"""Six corruptions of images at five severities, "CIFAR-C-style": on the batch, on the device that holds it.

Source: Hendrycks & Dietterich 2019, "Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations", and the severities for CIFAR-10-C in its published code (make_cifar_c.py). What differs:

- Blur is their ``gaussian_blur``, one of CIFAR-10-C's extra corruptions, and not ``defocus_blur`` of the
  fifteen, whose disk of a pixel or two has no counterpart in images of another size.
- Results are rounded to whole levels, where theirs are cut off: ours are half a level brighter.
- JPEG is PIL's as theirs is: image by image on the CPU, whatever holds the batch. Images that were JPEG
  files before lose less by it.
- Images may be grey, and of any size. Blur grows with the image. Noise, JPEG and pixelate are the same for a
  pixel, and so weaker to the eye in larger images (ImageNet-C has larger values for them).

Figures are comparable with each other, not with published ones on CIFAR-10-C.
"""

import io
from collections.abc import Callable

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

SIDE = 32  # pixels of the images that the values below are for

# By severity, 1 to 5.
NOISE = (0.04, 0.06, 0.08, 0.09, 0.10)  # deviation, on the 0..1 scale
BLUR = (0.4, 0.6, 0.7, 0.8, 1.0)  # deviation in pixels, of an image of SIDE pixels
CONTRAST = (0.75, 0.5, 0.4, 0.3, 0.15)  # factor
BRIGHTNESS = (0.05, 0.1, 0.15, 0.2, 0.3)  # added to the value of HSV, on the 0..1 scale
JPEG = (80, 65, 58, 50, 40)  # quality
PIXELATE = (0.95, 0.9, 0.85, 0.75, 0.65)  # of the pixels along a side that are left


def _noise(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    drawn = torch.randn(images.shape, generator=generator).to(images.device)
    return _to_uint8(images + drawn * (255 * NOISE[severity - 1]))


def _blur(images: Tensor, severity: int, _: torch.Generator) -> Tensor:
    """Gaussian, the border repeated outwards."""
    channels, height, width = images.shape[1:]
    deviation = BLUR[severity - 1] * min(height, width) / SIDE
    radius = int(4 * deviation + 0.5)
    places = torch.arange(-radius, radius + 1, device=images.device)
    kernel = (-0.5 * (places / deviation) ** 2).softmax(0).expand(channels, 1, 1, -1)  # (C, 1, 1, taps)
    padded = F.pad(images.float(), (radius,) * 4, mode="replicate")
    rows = F.conv2d(padded, kernel, groups=channels)
    return _to_uint8(F.conv2d(rows, kernel.mT, groups=channels))


def _contrast(images: Tensor, severity: int, _: torch.Generator) -> Tensor:
    """Draw each channel towards its mean over the image."""
    pixels = images.float()
    return _to_uint8(pixels.mean((2, 3), keepdim=True).lerp(pixels, CONTRAST[severity - 1]))


def _brightness(images: Tensor, severity: int, _: torch.Generator) -> Tensor:
    """Raise the value of HSV: one factor for all channels keeps hue and saturation; black becomes grey."""
    pixels = images.float()
    value = pixels.amax(1, keepdim=True)  # (B, 1, H, W)
    raised = (value + 255 * BRIGHTNESS[severity - 1]).clamp(max=255)
    return _to_uint8(torch.where(value > 0, pixels * (raised / value.clamp(min=1)), raised))


def _jpeg(images: Tensor, severity: int, _: torch.Generator) -> Tensor:
    decoded = []
    for image in images.cpu():
        file = io.BytesIO()
        to_pil_image(image).save(file, "JPEG", quality=JPEG[severity - 1])
        decoded.append(pil_to_tensor(Image.open(file)))
    return torch.stack(decoded).to(images.device)


def _pixelate(images: Tensor, severity: int, _: torch.Generator) -> Tensor:
    """Make the image smaller by PIL's box filter, and large again by repeating pixels."""
    height, width = images.shape[-2:]
    rows, columns = (_box(side, max(1, int(side * PIXELATE[severity - 1]))) for side in (height, width))
    small = rows.to(images.device) @ images.float() @ columns.to(images.device).T
    return _to_uint8(F.interpolate(small.round(), (height, width), mode="nearest-exact"))


def _box(side: int, smaller: int) -> Tensor:
    """Return ``(smaller, side)``: the pixels whose centre lies below a larger pixel, all with one weight."""
    edges = torch.arange(smaller + 1) * side / smaller
    centres = torch.arange(side) + 0.5
    below = (centres > edges[:-1, None]) & (centres <= edges[1:, None])
    return below / below.sum(1, keepdim=True)


def _to_uint8(pixels: Tensor) -> Tensor:
    return pixels.round().clamp(0, 255).to(torch.uint8)


# (uint8 images (B, C, H, W), severity 1..5, generator on the CPU) → new images of the same shape.
CORRUPTIONS: dict[str, Callable[[Tensor, int, torch.Generator], Tensor]] = {
    "noise": _noise,
    "blur": _blur,
    "contrast": _contrast,
    "brightness": _brightness,
    "jpeg": _jpeg,
    "pixelate": _pixelate,
}
