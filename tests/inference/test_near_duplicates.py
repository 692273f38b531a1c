"""Planted copies are found, whatever was done to them, and nothing else is."""

import io
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from vitlab.data.shapes import Shapes
from vitlab.inference import near_duplicates
from vitlab.inference.near_duplicates import THRESHOLD, Pairs, find, plot_pairs


def recompress(image: Tensor) -> Tensor:
    file = io.BytesIO()
    to_pil_image(image).save(file, "JPEG", quality=70)
    return pil_to_tensor(Image.open(file))


def crop(image: Tensor) -> Tensor:
    inner = image[None, :, 1:-1, 1:-1].float()
    return F.interpolate(inner, image.shape[1:], mode="bilinear").round().to(torch.uint8)[0]


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda image: image,
    "mirrored": lambda image: image.flip(2),
    "shifted": lambda image: image.roll((1, -1), (1, 2)),
    "brighter": lambda image: (image.float() * 0.8 + 40).round().to(torch.uint8),
    "recompressed": recompress,
    "cropped": crop,
    "mirrored, shifted and recompressed": lambda image: recompress(image.flip(2).roll(1, 1)),
}


def scenes(number: int, seed: int, channels: int = 3, side: int = 32) -> Tensor:
    """Images of random patches in random colours, of which no two are alike: (number, C, side, side)."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(number, channels, 8, 8, generator=generator) * 255
    return F.interpolate(drawn, (side, side), mode="bicubic").clamp(0, 255).to(torch.uint8)


def plant(images: Tensor) -> Tensor:
    """Return a copy of the first images, a change each."""
    return torch.stack([change(image) for change, image in zip(CHANGES.values(), images, strict=False)])


@pytest.mark.parametrize(("channels", "side"), [(3, 32), (1, 28), (3, 64)])
def test_copies_are_found_and_nothing_else(channels: int, side: int) -> None:
    train = scenes(300, 0, channels, side)
    test = torch.cat([scenes(100, 1, channels, side), plant(train[40:])])
    found = find(train, test)
    assert dict(zip(found.test_rows.tolist(), found.train_rows.tolist(), strict=True)) == {
        100 + place: 40 + place for place in range(len(CHANGES))
    }
    assert found.distance.tolist() == sorted(found.distance.tolist())
    assert (found.test_rows[0], found.distance[0]) == (100, 0)
    assert (found.test_rows[1], found.distance[1]) == (101, pytest.approx(0, abs=1e-5))  # its mirror image
    assert found.distance.max() <= THRESHOLD


def test_among_shapes_each_copy_is_found() -> None:
    images, _ = Shapes(num_train=200, num_test=10, seed=0, shape=(32, 32), channels=3).load("train")
    train = torch.from_numpy(images)
    found = find(train, plant(train))
    # Shapes may be alike by themselves: another one may be as near as the changed original.
    assert found.test_rows.sort().values.tolist() == list(range(len(CHANGES)))
    assert found.train_rows[found.test_rows == 0].item() == 0
    assert found.distance[found.test_rows == 0].item() == 0


def test_the_nearest_of_several_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_duplicates, "CHUNK", 3)
    train = scenes(20, 0)
    train[7], train[11] = recompress(train[3]), recompress(recompress(train[3])).roll(1, 1)
    found = find(train, train[3:4])
    assert (found.test_rows.tolist(), found.train_rows.tolist()) == ([0], [3])
    without = torch.cat([train[:3], train[4:]])
    assert find(without, train[3:4]).train_rows.tolist() == [6]


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    train = scenes(50, 0)
    test = torch.cat([plant(train), scenes(9, 1)])
    whole = find(train, test)
    monkeypatch.setattr(near_duplicates, "CHUNK", 7)
    parts = find(train, test)
    assert torch.equal(whole.test_rows, parts.test_rows)
    assert torch.equal(whole.train_rows, parts.train_rows)
    torch.testing.assert_close(whole.distance, parts.distance, rtol=0, atol=1e-5)


def test_other_scenes_with_the_same_colours_are_not_duplicates() -> None:
    """A sky over a sea: what is coarser than an object does not count."""
    sky = torch.linspace(220, 60, 32)[None, None, :, None].expand(40, 3, 32, 32)
    generator = torch.Generator().manual_seed(0)
    things = F.interpolate(torch.randn(40, 1, 10, 10, generator=generator) * 25, (32, 32), mode="bicubic")
    images = (sky + things).clamp(0, 255).to(torch.uint8)
    assert len(find(images[:30], images[30:]).distance) == 0


def test_images_without_detail_are_alike_and_like_nothing_else() -> None:
    flat = torch.full((2, 3, 32, 32), 17, dtype=torch.uint8)
    flat[1] += torch.randint(2, flat[1].shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = find(torch.cat([scenes(5, 0), flat[:1]]), torch.cat([flat, scenes(3, 1)]))
    assert found.test_rows.sort().values.tolist() == [0, 1]
    assert found.train_rows.tolist() == [5, 5]


def test_one_image_against_one() -> None:
    one, other = scenes(2, 0).split(1)
    assert find(one, one).distance.tolist() == [0]
    assert find(one, other).test_rows.shape == (0,)


def test_the_figure_goes_from_the_nearest_to_the_furthest() -> None:
    train = scenes(30, 0, channels=1)
    pairs = Pairs(torch.arange(20), torch.arange(20) + 5, torch.linspace(0, 0.08, 20))
    names = ["cat"] * 15 + ["dog"] * 15
    figure = plot_pairs(pairs, train, train, 3, train_names=names, test_names=names)
    assert [axes.get_title() for axes in figure.axes[:3]] == ["0.000", "0.042", "0.080"]
    assert [axes.get_xlabel() for axes in figure.axes] == [
        "0 cat", "10 cat", "19 dog", "5 cat", "15 dog", "24 dog",
    ]  # fmt: skip
    assert len(plot_pairs(Pairs(*(part[:2] for part in vars(pairs).values())), train, train).axes) == 4
