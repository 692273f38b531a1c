"""The built-in shapes: deterministic, balanced, of any size, and no matter of colour."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.data.helpers import config
from vitlab.data import datasets


def shapes(**changes):
    return datasets.build(config("shapes", **changes))


@pytest.mark.parametrize(
    ("size", "channels", "expected"),
    [(32, 3, (3, 32, 32)), ([24, 40], 1, (1, 24, 40)), (7, 3, (3, 7, 7))],
)
def test_any_size_and_channels(size, channels, expected):
    dataset = shapes(num_train=40, num_test=20, val_size=10, batch_size=8, image_size=size, channels=channels)
    images, labels = dataset.load("train")
    assert images.shape == (40, *expected)
    assert images.dtype == np.uint8
    assert labels.dtype == np.int64
    assert np.bincount(labels).tolist() == [4] * 10
    assert len(dataset.classes) == 10


def test_the_images_are_a_function_of_the_seed_and_the_split():
    small = {"num_train": 30, "num_test": 30, "val_size": 0, "batch_size": 8}
    train, _ = shapes(**small).load("train")
    assert np.array_equal(train, shapes(**small).load("train")[0])
    more = shapes(**small | {"num_train": 600}).load("train")[0]
    assert np.array_equal(train, more[:30]), "fewer images are a prefix of more"
    assert len({image.tobytes() for image in more}) == 600
    assert not np.array_equal(train, shapes(**small | {"seed": 1}).load("train")[0])
    assert not np.array_equal(train, shapes(**small).load("test")[0])


def test_too_few_images_are_refused():
    with pytest.raises(ValueError, match="must be 10 or more"):
        shapes(num_test=5)


def linear_accuracy(train, train_labels, test, test_labels) -> float:
    """Return the best test accuracy of a multinomial logistic regression, trained to the end."""
    mean, std = train.mean(0), train.std(0) + 1e-6
    train, test = (train - mean) / std, (test - mean) / std
    generator = torch.Generator().manual_seed(0)
    weight = torch.zeros(10, train.shape[1], requires_grad=True)
    bias = torch.zeros(10, requires_grad=True)
    optimizer = torch.optim.AdamW([weight, bias], lr=1e-3, weight_decay=1.0)
    best = 0.0
    for _ in range(12):
        for rows in torch.randperm(len(train), generator=generator).split(250):
            loss = F.cross_entropy(F.linear(train[rows], weight, bias), train_labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        right = F.linear(test, weight, bias).argmax(1) == test_labels
        best = max(best, right.float().mean().item())
    return best


def splits(**changes) -> list[torch.Tensor]:
    dataset = shapes(**changes)
    return [torch.from_numpy(a) for split in ("train", "test") for a in dataset.load(split)]


@pytest.mark.slow
def test_a_linear_classifier_does_not_solve_it():
    train, train_labels, test, test_labels = splits()
    accuracy = linear_accuracy(train.flatten(1).float(), train_labels, test.flatten(1).float(), test_labels)
    assert 0.2 < accuracy < 0.6


def test_colour_alone_does_not_solve_it():
    train, train_labels, test, test_labels = splits(num_train=3000, num_test=1000)

    def histograms(images):  # per channel, 16 bins, as shares of the pixels
        bins = (images.flatten(2) // 16).long()
        counts = torch.zeros(len(images), 3, 16).scatter_add_(2, bins, torch.ones(bins.shape))
        return counts.flatten(1) / 1024

    accuracy = linear_accuracy(histograms(train), train_labels, histograms(test), test_labels)
    assert accuracy < 0.4
