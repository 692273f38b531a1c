"""The operations that policies choose from, each with a value of its own for every image.

The images are sorted by operation, so a batch in which every image has another one costs a few passes over
its pixels: all that move pixels are one warp with a matrix for each image, and each that changes levels is
one call. Images are uint8 (B, C, H, W), values (B,) in the unit given with each operation. Arithmetic and
rounding follow PIL and torchvision.transforms.v2.functional, to within one level.
"""

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from vitlab.augment.base import to_uint8

LUMA = (0.2989, 0.587, 0.114)  # ITU-R 601, as PIL and torchvision round it
BLUR_RADIUS = 6  # pixels, three deviations of the widest blur, 2.0, that 3-Augment draws


def apply_ops(images: Tensor, ops: Tensor, values: Tensor, *, interpolation: str, fill: Tensor) -> Tensor:
    """Apply to each image the operations chosen for it, one after the other.

    Args:
        images: uint8 (B, C, H, W) on any device.
        ops: int64 (S, B) indices into ``OPS``, on the CPU: the groups must be known here, and reading
            them from a GPU would mean waiting for it.
        values: float (S, B) on the CPU.
        interpolation: of what moves pixels, ``nearest`` or ``bilinear``.
        fill: float (1 or C,) level, 0..255, of what comes from outside the image.
    """
    device = images.device
    place = torch.arange(len(images))  # the current index of each image
    for chosen, value in zip(ops, values, strict=True):
        order = chosen.argsort()
        counts = torch.bincount(chosen, minlength=len(OPS)).tolist()
        if counts[0] == len(images):
            continue  # nothing but the identity
        images = images.index_select(0, place[order].to(device, non_blocking=True))
        images = _apply(images, counts, value[order], interpolation, fill)
        place[order] = torch.arange(len(images))
    return images.index_select(0, place.to(device, non_blocking=True))


def _apply(images: Tensor, counts: list[int], values: Tensor, interpolation: str, fill: Tensor) -> Tensor:
    """Apply one operation to each of images that are sorted by it; ``counts`` of each of ``OPS``."""
    first = 1 + len(MOVES)
    kept, moved, *groups = images.split([counts[0], sum(counts[1:first]), *counts[first:]])
    parts = [kept]
    if len(moved):
        kinds = torch.repeat_interleave(torch.tensor(counts[1:first]))
        matrices = _matrices(kinds, values[len(kept) : len(kept) + len(moved)], *images.shape[2:])
        parts.append(_warp(moved, matrices, interpolation, fill))
    amounts = values.to(images.device, non_blocking=True)[:, None, None, None].split(counts)
    parts += [
        change(group, amount)
        for change, group, amount in zip(LEVELS.values(), groups, amounts[first:], strict=True)
        if len(group)
    ]
    return torch.cat(parts)


# What moves pixels: a 2 × 3 matrix takes the place of a pixel (column, row) to the place of its source, both
# in pixels from the centre of the image. All but the rotation are linear in their value.


@cache
def _slopes(height: int, width: int) -> Tensor:
    """Return (M, 2, 3): what a value of 1 adds to the matrix of each of ``MOVES``."""
    slopes = torch.zeros(len(MOVES), 2, 3)
    slopes[MOVES.index("shear_x"), 0] = torch.tensor([0, 1, height / 2])  # the upper left corner stays
    slopes[MOVES.index("shear_y"), 1] = torch.tensor([1, 0, width / 2])
    slopes[MOVES.index("translate_x"), 0, 2] = -1
    slopes[MOVES.index("translate_y"), 1, 2] = -1
    return slopes


def _matrices(kinds: Tensor, values: Tensor, height: int, width: int) -> Tensor:
    """Return (n, 2, 3) for ``kinds`` (n,), places in ``MOVES``, and their values (n,)."""
    angles = (values * (kinds == MOVES.index("rotate"))).deg2rad_()
    cos, sin, zero = angles.cos(), angles.sin(), torch.zeros_like(angles)
    rotations = torch.stack([cos, -sin, zero, sin, cos, zero], 1).view(-1, 2, 3)
    return rotations.addcmul_(_slopes(height, width)[kinds], values[:, None, None])


def _warp(images: Tensor, matrices: Tensor, interpolation: str, fill: Tensor) -> Tensor:
    height, width = images.shape[-2:]
    a, b, c = matrices.to(images.device, non_blocking=True)[..., None, None].unbind(2)  # (n, 2, 1, 1) each
    # Sums, not a matrix product: that would be inexact in TF32 or under autocast.
    scale, columns, rows = _places(height, width, images.device)
    grid = (a * scale) * columns + (b * rows + c) * scale  # (n, 2, H, W)
    # Pixels outside are sampled as 0: counting the levels from the fill turns that 0 into the fill.
    zero = fill.to(images.device, non_blocking=True).view(1, -1, 1, 1)
    moved = F.grid_sample(
        images.float().sub_(zero), grid.permute(0, 2, 3, 1), interpolation, "zeros", align_corners=False
    ).add_(zero)
    return to_uint8(moved.round_() if interpolation == "bilinear" else moved)


@cache
def _places(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return pixels to grid_sample's -1..1 (2, 1, 1), and the places of columns (W,) and rows (H, 1)."""
    scale = torch.tensor([2 / width, 2 / height], device=device).view(2, 1, 1)
    columns = torch.arange(width, device=device) - (width - 1) / 2
    rows = torch.arange(height, device=device) - (height - 1) / 2
    return scale, columns, rows[:, None]


# What changes levels: images (n, C, H, W) uint8 and values (n, 1, 1, 1) → images.


def _brightness(images: Tensor, factor: Tensor) -> Tensor:
    return to_uint8(images.float().mul_(factor).clamp_(0, 255))


def _contrast(images: Tensor, factor: Tensor) -> Tensor:
    mean = _luma(images).floor_().mean((1, 2, 3), keepdim=True)
    return to_uint8(images.float().mul_(factor).add_(mean * (1 - factor)).clamp_(0, 255))


def _autocontrast(images: Tensor, _: Tensor) -> Tensor:
    low, high = (t[..., None, None].float() for t in (images.amin((2, 3)), images.amax((2, 3))))
    flat = high == low  # such a channel stays as it is
    return to_uint8(
        images.float().sub_(low.masked_fill(flat, 0)).mul_((255 / (high - low)).masked_fill(flat, 1))
    )


def _equalize(images: Tensor, _: Tensor) -> Tensor:
    pixels = images.flatten(2)  # (n, C, H * W)
    counts = _histograms(pixels)
    brightest = pixels.amax(2, keepdim=True).long()
    # Summed as integers: on a GPU a sum of floats is refused where everything has to be deterministic. Then
    # as floats: exact below 2 ** 24, and divided several times as fast.
    darker = (counts.cumsum(2) - counts).float()
    step = ((pixels.shape[2] - counts.gather(2, brightest)).float() / 255).floor_()
    table = ((darker + (step / 2).floor_()) / step).floor_()  # (n, C, 256): what each level becomes
    table = torch.where(step > 0, table, torch.arange(256, device=images.device)).clamp_(max=255)
    return to_uint8(table).gather(2, pixels.long()).view_as(images)


def _posterize(images: Tensor, bits: Tensor) -> Tensor:
    return images & (256 - torch.exp2(8 - bits).round()).to(torch.uint8)


def _solarize(images: Tensor, threshold: Tensor) -> Tensor:
    # In whole bytes, where 255 - x is x with every bit turned: torch.where on uint8 is slow on a CPU.
    return images ^ (images >= threshold).to(torch.uint8).mul_(255)


def _solarize_add(images: Tensor, amount: Tensor) -> Tensor:
    return images + (images < 128).to(torch.uint8).mul_(amount.to(torch.uint8))


def _invert(images: Tensor, _: Tensor) -> Tensor:
    return 255 - images


def _color(images: Tensor, factor: Tensor) -> Tensor:
    if images.shape[1] == 1:
        return images
    gray = _luma(images).floor_()
    return to_uint8(images.float().mul_(factor).add_(gray.mul_(1 - factor)).clamp_(0, 255))


def _sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """0 smooths, 1 changes nothing, 2 sharpens; the border pixels stay."""
    if min(images.shape[-2:]) < 3:
        return images
    # PIL's SMOOTH: a 3 × 3 mean in which the centre counts five times. The sums run over the flat image,
    # where one row follows the other: in few long loops, and wrong at the border alone, which is not used.
    width = images.shape[-1]
    pixels = images.float()
    flat = pixels.flatten(2)  # (n, C, H * W), a view
    three = flat[..., :-2].add(flat[..., 1:-1]).add_(flat[..., 2:])
    nine = three[..., : -2 * width].add(three[..., width:-width]).add_(three[..., 2 * width :])
    centre = flat[..., width + 1 : -width - 1]
    smooth = nine.add_(centre, alpha=4).mul_(1 / 13).round_()
    sharp = F.pad(torch.lerp(smooth, centre, factor[..., 0]), (width + 1, width + 1)).view_as(pixels)
    pixels[..., 1:-1, 1:-1] = sharp[..., 1:-1, 1:-1]
    return to_uint8(pixels.clamp_(0, 255))


def _blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian, the image mirrored at its borders."""
    pixels = images.float()
    for side in (2, 3):
        # A product with a banded matrix an image, along one side and then the other.
        length = images.shape[side]
        radius = min(BLUR_RADIUS, length - 1)
        padded = pixels.index_select(side, reflected(length, radius, images.device))
        distance = torch.arange(-radius, length + radius, device=images.device)[:, None]
        distance = distance - torch.arange(length, device=images.device)  # (length + 2 * radius, length)
        band = distance.div(sigma).square_().mul_(-0.5).masked_fill_(distance.abs() > radius, -torch.inf)
        band = band.softmax(2)  # (n, 1, length + 2 * radius, length)
        pixels = padded @ band if side == 3 else band.mT @ padded
    return to_uint8(pixels.round_())


def _luma(images: Tensor) -> Tensor:
    """Return the brightness of uint8 images as float (n, 1, H, W)."""
    if images.shape[1] == 1:
        return images.float()
    red, green, blue = images.split(1, dim=1)
    return red.mul(LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


def _histograms(pixels: Tensor) -> Tensor:
    """Count the levels of uint8 (n, C, P): int64 (n, C, 256)."""
    n, channels, _ = pixels.shape
    first = torch.arange(0, n * channels * 256, 256, dtype=torch.int32, device=pixels.device)
    place = (pixels.int() + first.view(n, channels, 1)).flatten()
    if pixels.device.type == "cpu":  # several times as fast there; on a GPU it would wait for the device
        counts = torch.bincount(place, minlength=n * channels * 256)
    else:
        counts = torch.zeros(n * channels * 256, dtype=torch.int64, device=pixels.device)
        counts.scatter_add_(0, place.long(), torch.ones_like(place, dtype=torch.int64))
    return counts.view(n, channels, 256)


def reflected(length: int, padding: int, device: torch.device) -> Tensor:
    """Return the source of each of ``length + 2 * padding`` places: 2 1 | 0 1 2 3 | 2 1."""
    places = torch.arange(-padding, length + padding, device=device).abs()
    return (length - 1) - ((length - 1) - places).abs()


MOVES = (
    "shear_x",  # tangent of the angle
    "shear_y",
    "translate_x",  # pixels to the right
    "translate_y",  # pixels down
    "rotate",  # degrees, counter-clockwise
)
LEVELS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "brightness": _brightness,  # factor
    "contrast": _contrast,  # factor; 0 is the mean gray
    "autocontrast": _autocontrast,  # no value
    "equalize": _equalize,  # no value
    "posterize": _posterize,  # bits kept of 8
    "solarize": _solarize,  # level from which on is inverted
    "solarize_add": _solarize_add,  # levels added below 128, up to 128
    "invert": _invert,  # no value
    "color": _color,  # factor; 0 is gray
    "sharpness": _sharpness,  # factor
    "blur": _blur,  # deviation in pixels
}
OPS = ("identity", *MOVES, *LEVELS)  # moves in a row: `_apply` takes them together
