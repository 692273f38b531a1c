"""Crops and flips: exact pixels for fixed draws, and one draw for each image."""

import pytest
import torch
from torch import nn

from tests.augment.helpers import generator, pixels
from vitlab.augment import Compose, ImageOp
from vitlab.augment.ops import RandomCrop, RandomFlip


@pytest.mark.parametrize(("mode", "torch_mode"), [("zero", "constant"), ("reflect", "reflect")])
def test_a_crop_is_the_slice_of_the_padded_image(mode, torch_mode):
    op = RandomCrop(padding=3, padding_mode=mode)
    x = pixels((7, 3, 6, 9))
    rows, columns = torch.tensor([0, 6, 3, 0, 6, 2, 5]), torch.tensor([0, 6, 3, 6, 0, 1, 4])
    padded = nn.functional.pad(x.float(), (3, 3, 3, 3), mode=torch_mode).to(torch.uint8)
    out = op.transform(x, rows, columns)
    for i, (r, c) in enumerate(zip(rows.tolist(), columns.tolist(), strict=True)):
        assert torch.equal(out[i], padded[i, :, r : r + 6, c : c + 9])
    assert torch.equal(out[2], x[2]), "the middle is the image itself"


def test_a_crop_draws_every_corner_for_every_image():
    rows, columns = RandomCrop(padding=2, padding_mode="zero").draw(torch.empty(2000, 3, 8, 8), generator())
    counts = torch.zeros(5, 5).index_put_((rows, columns), torch.ones(2000), accumulate=True)
    assert counts.min() > 40, "80 expected of each of the 25"


def test_a_flip_mirrors_the_marked_images_alone():
    x = pixels((3, 3, 4, 5))
    out = RandomFlip(p=0.5).transform(x, torch.tensor([True, False, True]))
    assert torch.equal(out[0], x[0].flip(-1))
    assert torch.equal(out[1], x[1])
    assert torch.equal(out[2], x[2].flip(-1))


@pytest.mark.parametrize(("p", "low", "high"), [(0, 0, 0), (1, 1, 1), (0.25, 0.2, 0.3)])
def test_a_flip_has_its_probability(p, low, high):
    (marked,) = RandomFlip(p=p).draw(torch.empty(2000, 3, 8, 8), generator())
    assert low <= marked.float().mean() <= high


def test_a_reflection_must_fit_into_the_image():
    with pytest.raises(ValueError, match="wider than images of 8 x 8"):
        RandomCrop(padding=8, padding_mode="reflect")(pixels((2, 3, 8, 8)), None, generator())


@pytest.mark.parametrize("mode", ["zero", "reflect"])
def test_without_padding_nothing_is_cropped(mode):
    x = pixels((5, 3, 7, 11))
    assert torch.equal(RandomCrop(padding=0, padding_mode=mode)(x, None, generator())[0], x)


class Add(ImageOp):
    def __init__(self, amount):
        super().__init__()
        self.amount = amount

    def draw(self, images, generator):
        return ()

    def transform(self, images, *drawn):
        return images * 2 + self.amount


def test_compose_applies_what_is_listed_in_that_order():
    x, targets = torch.ones(2, 1, 1, 1), torch.zeros(2, 2)
    ops = {"one": Add(1), "off": Add(100), "ten": Add(10)}
    assert Compose(ops=["one", "ten"], **ops)(x, targets, generator())[0].flatten().tolist() == [16, 16]
    assert Compose(ops=["ten", "one"], **ops)(x, targets, generator())[0].flatten().tolist() == [25, 25]
    assert torch.equal(Compose(ops=[], **ops)(x, targets, generator())[0], x)


def test_compose_ends_an_augmentation_by_the_epoch():
    x, targets = torch.ones(2, 1, 1, 1), torch.zeros(2, 2)
    both = Compose(ops=["one", "ten"], one=Add(1), ten=Add(10))
    both.ops["ten"].off_after_epoch = 3
    results = [both(x, targets, generator(), epoch)[0].unique().item() for epoch in range(5)]
    assert results == [16, 16, 16, 3, 3]
