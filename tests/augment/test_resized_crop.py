"""The resized crop: torchvision's pixels for fixed crops, and its distribution of crops."""

import pytest
import torch
from torchvision.transforms import v2

from tests.augment.helpers import assert_distributed_alike, generator, pixels
from vitlab.augment.resized_crop import RandomResizedCrop


def make(**options):
    defaults = {"min_area": 0.08, "max_area": 1.0, "min_ratio": 3 / 4, "max_ratio": 4 / 3}
    return RandomResizedCrop(**defaults | options)


@pytest.mark.parametrize("shape", [(60, 3, 32, 32), (30, 1, 17, 40), (30, 3, 33, 9), (4, 3, 224, 224)])
def test_a_crop_has_torchvisions_pixels(shape):
    images = pixels(shape)
    op = make(min_area=0.01, min_ratio=0.2, max_ratio=5)
    (crops,) = op.draw(images, generator())
    crops[0] = torch.tensor([0, 0, *shape[2:]])  # the whole
    crops[1] = torch.tensor([2, 3, 1, 1])
    assert (crops[:, 2:] >= 1).all()
    assert (crops[:, :2] >= 0).all()
    assert (crops[:, :2] + crops[:, 2:] <= torch.tensor(shape[2:])).all()
    out = op.transform(images, crops)
    floats = op.transform(images / 255, crops)
    for i, (top, left, height, width) in enumerate(crops.tolist()):
        crop = images[i, :, top : top + height, left : left + width]
        expected = v2.functional.resize(crop, list(shape[2:]), antialias=True)
        assert (out[i].int() - expected.int()).abs().max() <= 1
        exact = v2.functional.resize(crop / 255, list(shape[2:]), antialias=True)
        torch.testing.assert_close(floats[i], exact, atol=1e-4, rtol=0)
    assert torch.equal(out[0], images[0])
    assert (out[1] == images[1, :, 2:3, 3:4]).all()


OPTIONS = [
    ({}, (32, 32)),
    ({"min_area": 0.8}, (20, 50)),  # none fits: the central crop
    ({"min_area": 0.8}, (50, 20)),
    ({"min_area": 0.5, "min_ratio": 0.5, "max_ratio": 3.0}, (20, 30)),
    ({"min_area": 0.01, "max_area": 0.05}, (4, 4)),  # some would have no pixel
    ({"min_area": 0.9999, "min_ratio": 0.5, "max_ratio": 2.0}, (32, 32)),  # seldom one: the whole
]


@pytest.mark.parametrize(("options", "size"), OPTIONS)
def test_crops_are_distributed_as_torchvisions(options, size):
    number = 3000
    op = make(**options)
    (crops,) = op.draw(torch.empty(number, 3, *size), generator())
    reference = v2.RandomResizedCrop(size, scale=op.area, ratio=op.ratio)
    torch.manual_seed(0)
    image = torch.empty(3, *size)
    params = [reference.make_params([image]) for _ in range(number)]
    expected = torch.tensor([[p[k] for k in ("top", "left", "height", "width")] for p in params])
    for ours, other in zip(crops.T, expected.T, strict=True):
        assert_distributed_alike(ours, other, torch.arange(max(size) + 1), atol=0.04)
