"""From pixels to the model's input, the same way everywhere."""

import numpy as np
import pytest
import torch

from vitlab.data.preprocess import Preprocess, channel_statistics

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.5]


def images(number=5, size=(6, 4)):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (number, 3, *size), generator=generator, dtype=torch.uint8)


def test_uint8_and_float_give_the_same():
    module = Preprocess(size=(6, 4), mean=MEAN, std=STD)
    x = images()
    before = x.clone()
    expected = (x.numpy() / 255 - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
    out = module(x)
    assert out.dtype == torch.float32
    np.testing.assert_allclose(out, expected, atol=1e-5)
    scaled = x.float() / 255
    kept = scaled.clone()
    np.testing.assert_allclose(module(scaled), expected, atol=1e-5)
    assert torch.equal(scaled, kept), "the input is left as it is"
    assert torch.equal(x, before)
    assert module(x.half() / 255).dtype == torch.float32


def test_other_sizes_are_resized_with_antialiasing():
    module = Preprocess(size=(4, 4), mean=[0, 0, 0], std=[1, 1, 1])
    columns = torch.zeros(1, 3, 32, 32)
    columns[..., 3::8] = columns[..., 4::8] = 1.0  # where sampling alone would look
    out = module(columns)
    assert out.shape == (1, 3, 4, 4)
    assert (out - 0.25).abs().max() < 0.1
    assert module(images(size=(3, 9))).shape == (5, 3, 4, 4)


def test_the_normalisation_travels_with_the_state():
    module = Preprocess(size=(6, 4), mean=MEAN, std=STD)
    other = Preprocess(size=(6, 4), mean=[0, 0, 0], std=[1, 1, 1])
    other.load_state_dict(module.state_dict())
    assert torch.equal(module(images()), other(images()))


@pytest.mark.parametrize(
    "wrong",
    [torch.zeros(2, 1, 6, 4), torch.zeros(3, 6, 4), torch.zeros(2, 3, 6, 4, dtype=torch.int64)],
)
def test_other_shapes_and_types_are_refused(wrong):
    with pytest.raises(ValueError, match="expected"):
        Preprocess(size=(6, 4), mean=MEAN, std=STD)(wrong)


def test_statistics_are_exact_whatever_the_chunk():
    x = images(number=33)
    scaled = x.numpy().astype(np.float64) / 255
    for chunk in (1, 10, 2048):
        mean, std = channel_statistics(x.split(chunk))
        np.testing.assert_allclose(mean, scaled.mean((0, 2, 3)), rtol=1e-14)
        np.testing.assert_allclose(std, scaled.std((0, 2, 3)), rtol=1e-12)


def test_a_constant_channel_can_be_divided_by():
    mean, std = channel_statistics([torch.full((4, 1, 2, 2), 51, dtype=torch.uint8)])
    assert mean == [0.2]
    assert std == [1.0]
