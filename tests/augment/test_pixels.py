"""Every operation equals torchvision's at the same magnitude, whatever its neighbours in the batch do."""

import math

import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as reference

from tests.augment.helpers import generator
from vitlab.augment.pixels import LEVELS, MOVES, OPS, apply_ops

# Values without a pixel exactly halfway between two: there the nearest one is a matter of the last bit.
VALUES = {
    "identity": [0],
    "shear_x": [-0.3, 0.09, 0.93],
    "shear_y": [-0.3, 0.09, 0.21],
    "translate_x": [-4, 7, 31],
    "translate_y": [4, -9, -31],
    "rotate": [-30, 9, 133.7],
    "brightness": [0.01, 0.73, 1.27, 1.99],
    "contrast": [0.01, 0.73, 1.27, 1.99],
    "autocontrast": [0],
    "equalize": [0],
    "posterize": [8, 7, 4, 2, 0],
    "solarize": [0, 100, 178.5, 255, 256],
    "solarize_add": [0, 33, 110],
    "invert": [0],
    "color": [0, 0.73, 1.27, 1.99],
    "sharpness": [0.01, 0.73, 1.27, 1.99],
    "blur": [0.1, 0.7, 2.0],
}


def of_torchvision(op: str, x: torch.Tensor, v: float, interpolation: str) -> torch.Tensor:
    mode = InterpolationMode(interpolation)

    def affine(move=(0, 0), shear=(0.0, 0.0), center=None):
        degrees = [math.degrees(math.atan(s)) for s in shear]
        return reference.affine(x, 0.0, list(move), 1.0, degrees, interpolation=mode, center=center)

    return {
        "identity": lambda: x,
        "shear_x": lambda: affine(shear=(v, 0.0), center=[0, 0]),
        "shear_y": lambda: affine(shear=(0.0, v), center=[0, 0]),
        "translate_x": lambda: affine(move=(int(v), 0)),
        "translate_y": lambda: affine(move=(0, int(v))),
        "rotate": lambda: reference.rotate(x, v, interpolation=mode),
        "brightness": lambda: reference.adjust_brightness(x, v),
        "contrast": lambda: reference.adjust_contrast(x, v),
        "autocontrast": lambda: reference.autocontrast(x),
        "equalize": lambda: reference.equalize(x),
        "posterize": lambda: reference.posterize(x, int(v)),
        # timm's weakest, 256, inverts nothing
        "solarize": lambda: reference.solarize(x, v) if v <= 255 else x,
        "solarize_add": lambda: torch.where(x < 128, x + int(v), x),  # timm's; torchvision has none
        "invert": lambda: reference.invert(x),
        "color": lambda: reference.adjust_saturation(x, v),
        "sharpness": lambda: reference.adjust_sharpness(x, v),
        "blur": lambda: reference.gaussian_blur(x, [13, 13], [v, v]),
    }[op]()


def pictures(shape) -> torch.Tensor:
    """Noise, smooth images, one of low contrast and one of a single colour."""
    seed = generator()
    noise = torch.randint(0, 256, shape, generator=seed, dtype=torch.uint8)
    coarse = torch.rand((*shape[:2], 5, 5), generator=seed)
    smooth = torch.nn.functional.interpolate(coarse, size=shape[2:], mode="bicubic").clamp(0, 1)
    images = torch.cat([noise[:2], (smooth[2:] * 255).to(torch.uint8)])
    images[-2] = images[-2] // 3 + 40
    images[-1] = 77
    return images


def run(images, op, value, interpolation="nearest", fill=0):
    shape = (1, len(images))
    return apply_ops(
        images,
        torch.full(shape, OPS.index(op)),
        torch.full(shape, float(value)),
        interpolation=interpolation,
        fill=torch.tensor([float(fill)]),
    )


def assert_within_one_level(ours, theirs):
    assert ours.dtype == theirs.dtype == torch.uint8
    assert (ours.int() - theirs.int()).abs().max() <= 1


def test_every_operation_is_tested():
    assert {*VALUES} == {*OPS} == {"identity", *MOVES, *LEVELS}


@pytest.mark.parametrize("shape", [(6, 3, 32, 32), (5, 1, 28, 36), (4, 3, 224, 224), (4, 3, 33, 17)], ids=str)
@pytest.mark.parametrize("op", OPS)
def test_an_operation_equals_torchvisions(op, shape):
    images = pictures(shape)
    before = images.clone()
    for interpolation in ("nearest", "bilinear") if op in MOVES else ("nearest",):
        for value in VALUES[op]:
            ours = run(images, op, value, interpolation)
            assert_within_one_level(ours, of_torchvision(op, images, value, interpolation))
    assert torch.equal(images, before)


@pytest.mark.parametrize("op", MOVES)
def test_what_comes_from_outside_has_the_fill(op):
    value = VALUES[op][0]
    black, gray = (run(pictures((4, 3, 32, 32)), op, value, fill=fill) for fill in (0, 128))
    # The first two are noise of all levels; where the two fills differ lies the outside.
    outside = black != gray
    assert 0.02 < outside.float().mean() < 0.5
    assert (black[outside] == 0).all()
    assert (gray[outside] == 128).all()


def test_a_colour_can_fill():
    images = pictures((4, 3, 16, 16))
    ops, values = torch.full((1, 4), OPS.index("translate_x")), torch.full((1, 4), 5.0)
    fill = torch.tensor([10.0, 20.0, 30.0])
    out = apply_ops(images, ops, values, interpolation="bilinear", fill=fill)
    assert (out[:, :, :, :5] == fill.to(torch.uint8).view(3, 1, 1)).all()
    assert torch.equal(out[:, :, :, 5:], images[:, :, :, :-5])


def test_every_image_gets_its_own_operations_in_their_order():
    cases = [(op, value) for op in OPS for value in VALUES[op]]
    images = pictures((len(cases), 3, 32, 32))
    picked = [[cases[i] for i in torch.randperm(len(cases), generator=generator(s))] for s in (1, 2)]
    ops = torch.tensor([[OPS.index(op) for op, _ in row] for row in picked])
    values = torch.tensor([[float(v) for _, v in row] for row in picked])
    together = apply_ops(images, ops, values, interpolation="nearest", fill=torch.zeros(1))
    for i in range(len(cases)):
        alone = images[i : i + 1]
        for row in picked:
            alone = run(alone, *row[i])
        assert torch.equal(together[i : i + 1], alone)


@pytest.mark.parametrize("number", [0, 1, 3])
def test_small_batches(number):
    images = pictures((6, 3, 32, 32))[:number]
    for op in OPS:
        out = run(images, op, VALUES[op][0])
        assert out.shape == images.shape
        assert out.dtype == torch.uint8


def test_tiny_images():
    for shape in [(4, 3, 1, 1), (4, 1, 2, 5)]:
        for op in OPS:
            assert run(pictures(shape), op, VALUES[op][0]).shape == shape
