"""Random erasing and cutout: exact pixels for fixed boxes, and torchvision's distribution of boxes."""

import pytest
import torch
from torchvision.transforms import v2

from tests.augment.helpers import assert_distributed_alike, generator, pixels
from vitlab.augment import Compose
from vitlab.augment.base import RunFacts
from vitlab.augment.erase import Cutout, RandomErasing

BOXES = torch.tensor([[0, 0, 0, 0], [1, 2, 3, 4], [0, 0, 6, 7], [5, 6, 1, 1]])


def erasing(**options):
    defaults = {"p": 1.0, "min_area": 0.02, "max_area": 0.33, "min_ratio": 0.3, "max_ratio": 3.3}
    return RandomErasing(**defaults | {"value": "zero"} | options)


def masks(boxes, height, width):
    marked = torch.zeros(len(boxes), 1, height, width, dtype=torch.bool)
    for mask, (top, left, h, w) in zip(marked, boxes.tolist(), strict=True):
        mask[:, top : top + h, left : left + w] = True
    return marked


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_box_holds_its_value_and_the_rest_stays(dtype, channels):
    images = pixels((4, channels, 6, 7), dtype)
    marked = masks(BOXES, 6, 7)
    black = erasing(value="zero").transform(images, BOXES)
    assert torch.equal(black, images.masked_fill(marked, 0))
    mean = images.double().mean((2, 3), keepdim=True)
    mean = (mean.round() if dtype == torch.uint8 else mean).to(dtype)
    gray = erasing(value="mean").transform(images, BOXES)
    torch.testing.assert_close(gray, torch.where(marked, mean, images))
    strip = pixels((2 * channels * 42,))
    starts = torch.tensor([0, 5, channels * 42, 1])
    noisy = erasing(value="random").transform(images, BOXES, strip, starts)
    noise = torch.stack([strip[s : s + channels * 42].view(channels, 6, 7) for s in starts.tolist()])
    noise = noise if dtype == torch.uint8 else noise.to(dtype) / 255
    assert torch.equal(noisy, torch.where(marked, noise, images))


def test_noise_is_uniform_and_another_one_in_every_image_and_batch():
    op = erasing(value="random", min_area=0.5, max_area=0.5, min_ratio=1.0, max_ratio=1.0)
    images = torch.full((64, 3, 32, 32), 7, dtype=torch.uint8)
    first, second = (op(images, None, generator(seed))[0] for seed in (0, 1))
    changed = first[first != 7].double()
    assert changed.numel() == pytest.approx(64 * 3 * 529 * 255 / 256, rel=0.01)
    assert changed.mean() == pytest.approx(127.5, abs=2)
    assert changed.std() == pytest.approx(73.9, abs=2)
    assert not torch.equal(first, second)
    centres = first[:, :, 15:17, 15:17].flatten(1)
    assert len({tuple(c.tolist()) for c in centres}) > 60


OPTIONS = [
    {},
    {"min_area": 0.3, "max_area": 0.9, "min_ratio": 0.2, "max_ratio": 1.0},  # often none of ten fits
    {"min_area": 0.5, "max_area": 0.5, "min_ratio": 2.0, "max_ratio": 2.0},  # never: as tall as the image
]


@pytest.mark.parametrize("options", OPTIONS)
def test_boxes_are_distributed_as_torchvisions(options):
    height, width, number = 24, 40, 3000
    op = erasing(**options)
    boxes, *_ = op.draw(torch.empty(number, 3, height, width), generator())
    reference = v2.RandomErasing(p=1.0, scale=op.area, ratio=op.ratio)
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    params = [reference.make_params([image]) for _ in range(number)]  # v is None where none fits
    expected = torch.tensor([[p["v"] is not None and p[k] for k in ("i", "j", "h", "w")] for p in params])
    boxes = boxes * (boxes[:, 2:3] > 0)  # an empty box lies anywhere
    assert ((boxes[:, 2] == 0) == (boxes[:, 3] == 0)).all()
    for ours, other in zip(boxes.T, expected.T, strict=True):
        assert_distributed_alike(ours, other, torch.arange(max(height, width) + 1), atol=0.04)
    assert (boxes[:, 2] < height).all()
    assert (boxes[:, 3] < width).all()


@pytest.mark.parametrize(("p", "low", "high"), [(0, 0, 0), (0.25, 0.22, 0.28), (1, 1, 1)])
def test_erasing_has_its_probability(p, low, high):
    boxes, *_ = Cutout(size=3, p=p, value="zero").draw(torch.empty(4000, 3, 8, 8), generator())
    assert low <= (boxes[:, 2] * boxes[:, 3] > 0).float().mean() <= high


def test_cutout_is_a_square_around_any_pixel_cut_off_at_the_border():
    height, width, number = 9, 13, 20_000
    boxes, *_ = Cutout(size=5, p=1.0, value="zero").draw(torch.empty(number, 1, height, width), generator())
    expected = {}
    for row in range(height):
        for column in range(width):
            top, left = max(row - 2, 0), max(column - 2, 0)
            box = top, left, min(row + 3, height) - top, min(column + 3, width) - left
            expected[box] = expected.get(box, 0) + 1
    found, counts = boxes.unique(dim=0, return_counts=True)
    assert {tuple(box) for box in found.tolist()} == set(expected)
    for box, count in zip(found.tolist(), counts.tolist(), strict=True):
        assert count == pytest.approx(number / (height * width) * expected[tuple(box)], abs=60)


def test_the_largest_share_is_what_a_draw_can_erase():
    assert erasing(max_area=0.33).largest_share(32, 32) == 0.33
    assert Cutout(size=16, p=1.0, value="zero").largest_share(32, 32) == 0.25
    assert Cutout(size=16, p=1.0, value="zero").largest_share(8, 32) == 0.5


def test_a_note_says_when_erasing_leaves_too_little():
    def notes(op, patches=None):
        return list(Compose(ops=["op"], op=op).notes(RunFacts((16, 16), patches, 10, 8)))

    assert notes(erasing(max_area=1 / 3)) == notes(Cutout(size=8, p=1.0, value="zero")) == []
    (one,) = notes(erasing(max_area=0.5), patches=32)
    assert one.startswith("augment.op may erase 50% of an image, as much as 16 of its 32 patches; lower augm")
    (two,) = notes(Cutout(size=12, p=1.0, value="zero"), patches=32)
    assert "may erase 56% of an image, as much as 18 of its 32 patches; lower augment.op.size" in two
    (resnet,) = notes(erasing(max_area=0.4))
    assert "patches" not in resnet
