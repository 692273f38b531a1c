"""The corruptions against independent formulas, and what all of them promise."""

import colorsys
import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import Tensor

from vitlab.data.shapes import Shapes
from vitlab.inference import corruptions
from vitlab.inference.corruptions import CORRUPTIONS

SEVERITIES = range(1, 6)


@pytest.fixture(scope="module")
def images() -> Tensor:
    dataset = Shapes(num_train=32, num_test=10, seed=3, shape=(32, 32), channels=3)
    return torch.from_numpy(dataset.load("train")[0])


def corrupt(name: str, images: Tensor, severity: int, seed: int = 0) -> Tensor:
    return CORRUPTIONS[name](images, severity, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_each_severity_is_further_from_the_original_than_the_one_before(name: str, images: Tensor) -> None:
    before = images.clone()
    distances = [
        (corrupt(name, images, severity).float() - images).square().mean().item() for severity in SEVERITIES
    ]
    assert distances[0] > 0
    assert distances == sorted(set(distances))
    assert torch.equal(images, before)


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("shape", [(1, 1, 28, 28), (3, 3, 48, 20), (2, 1, 9, 7), (2, 3, 2, 2)])
def test_images_of_any_size_and_grey_ones(name: str, shape: tuple[int, ...]) -> None:
    images = torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for severity in SEVERITIES:
        found = corrupt(name, images, severity)
        assert found.shape == shape
        assert found.dtype == torch.uint8
        assert found.data_ptr() != images.data_ptr()


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_an_image_does_not_depend_on_its_neighbours(name: str, images: Tensor) -> None:
    whole, first = (corrupt(name, chosen, 5) for chosen in (images, images[:16]))
    assert torch.equal(whole[:16], first)


def test_the_noise_is_that_of_the_generator_and_as_strong_as_it_says() -> None:
    grey = torch.full((8, 3, 32, 32), 128, dtype=torch.uint8)
    for severity, deviation in zip(SEVERITIES, corruptions.NOISE, strict=True):
        found = corrupt("noise", grey, severity)
        assert torch.equal(found, corrupt("noise", grey, severity))
        assert not torch.equal(found, corrupt("noise", grey, severity, seed=1))
        assert found.float().std().item() / 255 == pytest.approx(deviation, rel=0.03)
        assert found.float().mean().item() == pytest.approx(128, abs=1)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_blur_is_scipys_gaussian_and_grows_with_the_image(severity: int, images: Tensor) -> None:
    small = images[:4].numpy().astype(np.float64)
    for pixels, scale in ((small, 1), (small.repeat(2, 2).repeat(2, 3), 2)):
        found = corrupt("blur", torch.from_numpy(pixels.astype(np.uint8)), severity)
        sigma = corruptions.BLUR[severity - 1] * scale
        expected = gaussian_filter(pixels, (0, 0, sigma, sigma), mode="nearest", truncate=4)
        assert np.abs(found.numpy() - expected).max() < 0.51


@pytest.mark.parametrize("severity", SEVERITIES)
def test_contrast_draws_each_channel_to_its_mean(severity: int, images: Tensor) -> None:
    pixels = images.numpy() / 255.0
    means = pixels.mean((2, 3), keepdims=True)
    expected = ((pixels - means) * corruptions.CONTRAST[severity - 1] + means) * 255
    assert np.abs(corrupt("contrast", images, severity).numpy() - expected).max() < 0.51


@pytest.mark.parametrize("severity", SEVERITIES)
def test_brightness_raises_the_value_of_hsv(severity: int, images: Tensor) -> None:
    few = images[:2].clone()
    few[0, :, :2] = 0  # black
    few[0, :, 2] = torch.tensor([250, 3, 0])[:, None]  # red that cannot get much brighter
    found = corrupt("brightness", few, severity).permute(0, 2, 3, 1).reshape(-1, 3).tolist()
    for pixel, got in zip(few.permute(0, 2, 3, 1).reshape(-1, 3).tolist(), found, strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*(level / 255 for level in pixel))
        value = min(1.0, value + corruptions.BRIGHTNESS[severity - 1])
        expected = [255 * level for level in colorsys.hsv_to_rgb(hue, saturation, value)]
        assert got == pytest.approx(expected, abs=0.51)


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("side", [32, 28, 96])
def test_pixelate_is_pils_box_filter_twice(severity: int, side: int, images: Tensor) -> None:
    noise = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (3, side, 32), dtype=torch.uint8, generator=noise)
    large = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    share = corruptions.PIXELATE[severity - 1]
    small = large.resize((int(32 * share), int(side * share)), Image.Resampling.BOX)
    expected = np.asarray(small.resize(large.size, Image.Resampling.BOX)).astype(int).transpose(2, 0, 1)
    found = corrupt("pixelate", pixels[None], severity)[0].numpy()
    assert np.abs(found - expected).max() <= 1  # PIL rounds between rows and columns


def test_jpeg_is_a_file_of_that_quality(images: Tensor) -> None:
    for severity in SEVERITIES:
        for few in (images[:2], images[:2, :1]):
            for image, got in zip(few, corrupt("jpeg", few, severity), strict=True):
                file = io.BytesIO()
                picture = Image.fromarray(image.permute(1, 2, 0).numpy().squeeze())
                picture.save(file, "JPEG", quality=corruptions.JPEG[severity - 1])
                expected = np.atleast_3d(np.asarray(Image.open(file)))
                assert np.array_equal(got.permute(1, 2, 0).numpy(), expected)
