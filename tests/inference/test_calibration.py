"""The calibration error against a slow count of its own, and temperatures that are known."""

import pytest
import torch
from torch import Tensor

from vitlab.inference.calibration import HOTTEST, confidences, fit_temperature, measure_reliability
from vitlab.inference.scores import log_loss


def draw(number: int, classes: int = 10, *, sure: float = 3.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return logits (N, K), and labels drawn by the probabilities of logits / ``sure``."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(number, classes, generator=generator) * sure
    labels = torch.multinomial((logits / sure).softmax(1), 1, generator=generator)[:, 0]
    return logits, labels


def slow_ece(logits: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Return the calibration error of images without equal confidences, bin by bin."""
    table = sorted(
        (max(row), row.index(max(row)) == label)
        for row, label in zip(logits.double().softmax(1).tolist(), labels.tolist(), strict=True)
    )
    size, larger = divmod(len(table), bins)
    error = 0.0
    for number in range(bins):
        own = [table.pop(0) for _ in range(size + (number < larger))]
        error += abs(sum(confidence - right for confidence, right in own))
    return error / len(labels)


@pytest.mark.parametrize("number", [15, 31, 1000])
def test_the_calibration_error_equals_one_counted_bin_by_bin(number: int) -> None:
    logits, labels = draw(number)
    assert measure_reliability(logits, labels).ece == pytest.approx(slow_ece(logits, labels), abs=1e-12)


def test_the_bins_hold_equally_many_images() -> None:
    found = measure_reliability(*draw(100))
    assert found.count.tolist() == [7] * 10 + [6] * 5
    assert sorted(found.confidence) == found.confidence.tolist()


def test_fewer_images_than_bins_have_a_bin_each() -> None:
    logits, labels = draw(4)
    found = measure_reliability(logits, labels)
    assert found.count.tolist() == [1] * 4
    distance = ((logits.argmax(1) == labels).double() - confidences(logits)).abs()
    assert found.ece == pytest.approx(distance.mean().item())


def test_a_confidence_of_exactly_one_counts() -> None:
    logits = torch.tensor([[1000.0, 0.0]] * 20)
    labels = torch.tensor([0] * 12 + [1] * 8)
    assert confidences(logits).unique().tolist() == [1.0]
    assert measure_reliability(logits, labels).ece == pytest.approx(0.4)


def test_the_order_of_images_changes_nothing_even_of_equal_confidence() -> None:
    logits, labels = draw(90)
    logits, labels = torch.cat([logits, torch.zeros(60, 10)]), torch.cat([labels, torch.arange(60) // 6])
    order = torch.randperm(150, generator=torch.Generator().manual_seed(1))
    one, other = measure_reliability(logits, labels), measure_reliability(logits[order], labels[order])
    assert one.ece == pytest.approx(other.ece, abs=1e-12)


@pytest.mark.parametrize("sure", [0.5, 1.0, 3.0])
def test_the_temperature_is_what_the_logits_were_multiplied_by(sure: float) -> None:
    logits, labels = draw(20_000, sure=sure)
    temperature = fit_temperature(logits, labels)
    assert temperature == pytest.approx(sure, rel=0.05)
    best = log_loss(logits / temperature, labels)
    assert all(best < log_loss(logits / (temperature * factor), labels) for factor in (0.98, 1.02))
    assert measure_reliability(logits / temperature, labels).ece < 0.015


@pytest.mark.parametrize("size", [2, 1e4])
def test_where_every_image_is_right_the_temperature_stays_within_its_bounds(size: float) -> None:
    assert 1 / HOTTEST <= fit_temperature(torch.eye(5) * size, torch.arange(5)) <= HOTTEST
