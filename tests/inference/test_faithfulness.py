"""Deletion and insertion: against their definition, torchcam's own, and maps of which the worth is known."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchcam.methods import GradCAM
from torchcam.metrics import DeletionInsertionMetric

from tests.models.helpers import small_vit
from vitlab.inference.faithfulness import (
    RANDOM,
    TRAINED,
    Areas,
    beats_controls,
    interval,
    join,
    measure_areas,
    random_maps,
    score,
)
from vitlab.models.attention_weights import eager_copy, token_layout


class Brightness(nn.Module):
    """A network for which the class is as likely as the left half is bright."""

    def forward(self, images: Tensor) -> Tensor:
        bright = images[..., : images.shape[-1] // 2].mean((1, 2, 3))
        return torch.stack([torch.zeros_like(bright), bright], 1)


IMAGES = torch.full((2, 1, 20, 20), 4.0)
CLASSES = torch.ones(2, dtype=torch.long)


def halves(left: float, right: float) -> Tensor:
    return torch.tensor([left, right]).repeat_interleave(10).expand(2, 20, 20)


def test_what_decides_first_deletes_fast_and_inserts_fast() -> None:
    good = measure_areas(Brightness(), IMAGES, CLASSES, halves(1, 0))
    bad = measure_areas(Brightness(), IMAGES, CLASSES, halves(0, 1))
    assert (good.deletion < bad.deletion).all()
    assert (good.insertion > bad.insertion).all()
    # The whole left half is gone, or there, at the middle of the curves; sigmoid of 4 falls to a half.
    fractions = torch.linspace(0, 1, 21)
    falling = torch.sigmoid(4 * (1 - 2 * fractions).clamp(min=0))
    torch.testing.assert_close(good.deletion[0], torch.trapezoid(falling, fractions))
    rising = torch.sigmoid(4 * (2 * fractions).clamp(max=1))
    torch.testing.assert_close(good.insertion[0], torch.trapezoid(rising, fractions))


def test_areas_are_those_of_torchcam() -> None:
    net = eager_copy(small_vit(image_size=20, pool="mean"))
    images = torch.randn(4, 3, 20, 20, generator=torch.Generator().manual_seed(1))
    layout = token_layout(net)
    with GradCAM(net, layout.norms[-1], reshape_transform=layout.patches) as cam:
        metric = DeletionInsertionMetric(cam, lambda logits: logits.softmax(-1))
        metric.update(images)
        expected = metric.summary()
        scores = net(images).softmax(-1)
        classes = scores.argmax(1)
        (maps,) = cam(classes.tolist(), scores)
    found = measure_areas(net, images, classes, maps)
    assert found.deletion.mean().item() == pytest.approx(expected["deletion_auc"], abs=1e-5)
    assert found.insertion.mean().item() == pytest.approx(expected["insertion_auc"], abs=1e-5)


def test_a_map_of_noise_is_worth_nothing_and_is_the_same_each_time() -> None:
    images = IMAGES[:1].expand(64, 1, 20, 20)
    noise = random_maps(images, (5, 5))
    assert torch.equal(noise, random_maps(images, (5, 5)))
    found = measure_areas(Brightness(), images, torch.ones(64, dtype=torch.long), noise)
    low, high = interval(found.difference)
    assert low < 0 < high


def areas(difference: np.ndarray) -> Areas:
    return Areas(torch.full((len(difference),), 0.2), 0.2 + torch.from_numpy(difference))


def test_a_method_must_beat_both_controls_image_by_image() -> None:
    rng = np.random.default_rng(0)
    images = rng.normal(0.1, 0.3, 40)  # some images give every method more
    control = areas(images)
    better, same = areas(images + rng.normal(0.05, 0.02, 40)), areas(images + rng.normal(0, 0.02, 40))
    found = {(RANDOM, TRAINED): control, ("rollout", RANDOM): control, ("rollout", TRAINED): better}
    assert beats_controls("rollout", found)
    assert beats_controls("rollout", found | {("rollout", TRAINED): same}) is False
    assert beats_controls("rollout", found | {("rollout", RANDOM): better}) is False
    # The intervals of the two overlap: only the pairs tell them apart.
    assert score("rollout", TRAINED, better)["low"] < score(RANDOM, TRAINED, control)["high"]


def test_a_row_holds_means_over_all_images() -> None:
    whole = join([areas(np.array([0.1, 0.2])), areas(np.array([0.6] * 7))])
    row = score("rollout", TRAINED, whole)
    assert row["n"] == 9
    assert row["deletion"] == pytest.approx(0.2)
    assert row["insertion"] == pytest.approx(0.7)
    assert row["low"] < 0.5 < row["high"]


def test_of_too_few_images_nothing_is_claimed() -> None:
    few = areas(np.array([0.3] * 7))
    assert score("rollout", TRAINED, few)["low"] is None
    found = {(RANDOM, TRAINED): few, ("rollout", RANDOM): few, ("rollout", TRAINED): few}
    assert beats_controls("rollout", found) is None
