"""Accuracy with its interval, scores of classes, and the comparison of two networks."""

import math

import pytest
import torch
from torch import Tensor

from vitlab.inference.scores import (
    compare_pairs,
    count_confusions,
    find_right,
    log_loss,
    mcnemar,
    score_classes,
    wilson,
)


def bits(text: str) -> Tensor:
    """``"1101"`` → which of four images are right."""
    return torch.tensor([sign == "1" for sign in text])


@pytest.mark.parametrize(
    ("right", "total", "low", "high"),
    [  # as statsmodels 0.14's proportion_confint(method="wilson") has them
        (8071, 10000, 0.7992491, 0.8147150),
        (0, 10, 0.0, 0.2775328),
        (1, 1, 0.2065493, 1.0),
    ],
)
def test_the_interval_is_wilsons(right: int, total: int, low: float, high: float) -> None:
    assert wilson(right, total) == pytest.approx((low, high), abs=1e-7)


def test_an_image_is_right_if_its_label_is_among_the_largest() -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
    labels = torch.tensor([0, 1, 2])
    assert find_right(logits, labels).tolist() == [True, False, False]
    assert find_right(logits, labels, 2).tolist() == [True, True, False]


def test_of_equal_logits_one_is_the_prediction_of_all_scores() -> None:
    logits, labels = torch.zeros(4, 3), torch.tensor([0, 1, 2, 0])
    assert find_right(logits, labels).sum() == count_confusions(logits, labels).diagonal().sum()


def test_scores_of_classes_equal_those_counted_one_by_one() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(200, 4, generator=generator)
    labels = torch.randint(4, (200,), generator=generator)
    predictions = logits.argmax(1).tolist()
    for k, score in enumerate(score_classes(count_confusions(logits, labels), "abcd")):
        both = [(truth == k, said == k) for truth, said in zip(labels.tolist(), predictions, strict=True)]
        precision = sum(truth for truth, said in both if said) / sum(said for _, said in both)
        recall = sum(said for truth, said in both if truth) / sum(truth for truth, _ in both)
        assert score["name"] == "abcd"[k]
        assert score["support"] == sum(truth for truth, _ in both)
        assert (score["precision"], score["recall"]) == pytest.approx((precision, recall))
        assert score["f1"] == pytest.approx(2 * precision * recall / (precision + recall))


def test_a_score_of_nothing_is_none_and_not_a_number() -> None:
    # Of four classes: 0 is right, 1 is called 0, 2 neither is nor is called.
    counts = torch.tensor([[2, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]])
    _, never_called, absent, _ = score_classes(counts, "abcd")
    assert (never_called["precision"], never_called["recall"], never_called["f1"]) == (None, 0.0, 0.0)
    assert (absent["precision"], absent["recall"], absent["f1"], absent["support"]) == (None, None, None, 0)


def test_the_loss_is_the_mean_of_minus_log_p() -> None:
    logits = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]])
    assert log_loss(logits, torch.tensor([0, 0])) == pytest.approx((math.log(2) + math.log(4 / 3)) / 2)


def test_mcnemar_is_the_exact_test_on_the_images_that_one_alone_got_right() -> None:
    # 50 both right, 12 only one's, 3 only the other's, 10 neither; p by statsmodels 0.14, exact=True.
    one = bits("1" * 50 + "1" * 12 + "0" * 3 + "0" * 10)
    other = bits("1" * 50 + "0" * 12 + "1" * 3 + "0" * 10)
    assert mcnemar(one, other) == mcnemar(other, one) == pytest.approx(0.03515625)
    assert mcnemar(bits("1110"), bits("1110")) == 1.0


def test_every_pair_is_compared_once() -> None:
    right = {"a": bits("11110000"), "b": bits("11111110"), "c": bits("10000000")}
    pairs = compare_pairs(right)
    assert [(pair["one"], pair["other"]) for pair in pairs] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert (pairs[0]["only_one"], pairs[0]["only_other"]) == (0, 3)
    assert pairs[0]["difference"] == pytest.approx(-3 / 8)
    assert [pair["p_value"] for pair in pairs] == pytest.approx([0.25, 0.25, 0.03125])
    assert [pair["p_holm"] for pair in pairs] == pytest.approx([0.5, 0.5, 0.09375])
