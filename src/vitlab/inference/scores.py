"""How well logits (N, K) fit their labels (N,): accuracy, each class, and two networks on the same images."""

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple, TypedDict

import torch
from scipy.stats import binomtest
from torch import Tensor

from vitlab.core.multiple_tests import holm


class Interval(NamedTuple):
    """The 95 % interval of a share, 0..1."""

    low: float
    high: float


class ClassScore(TypedDict):
    """How well one class is told from the others.

    Attributes:
        name: of the class.
        precision: of the images called so, the share that is; None where none is called so.
        recall: of the images that are, the share that is called so; None where there are none.
        f1: the harmonic mean of both, 2 tp / (2 tp + fp + fn); None where none is, or is called so.
        support: images of the class.
    """

    name: str
    precision: float | None
    recall: float | None
    f1: float | None
    support: int


class Comparison(TypedDict):
    """Two networks on the same images.

    Attributes:
        one, other: their names.
        difference: accuracy of ``one`` - that of ``other``.
        only_one, only_other: images that it alone got right.
        p_value: of McNemar's exact test.
        p_holm: the same, corrected for the number of pairs compared.
    """

    one: str
    other: str
    difference: float
    only_one: int
    only_other: int
    p_value: float
    p_holm: float


def wilson(right: int, total: int) -> Interval:
    """Return the 95 % interval of ``right`` of ``total`` images.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference". Unlike the
    normal one it stays within 0..1, and has a width at 0 and 1.
    """
    return Interval(*map(float, binomtest(right, total).proportion_ci(0.95, "wilson")))


def find_right(logits: Tensor, labels: Tensor, top: int = 1) -> Tensor:
    """Return which images have their label among the ``top`` largest logits: bool (N,)."""
    # argmax and topk may differ in which of equal logits they take, and accuracy is defined by argmax.
    best = logits.argmax(1, keepdim=True) if top == 1 else logits.topk(top).indices
    return (best == labels[:, None]).any(1)


def log_loss(logits: Tensor, labels: Tensor) -> float:
    """Return the mean of -log p of the label, in nats."""
    return torch.nn.functional.cross_entropy(logits.double(), labels).item()


def count_confusions(logits: Tensor, labels: Tensor) -> Tensor:
    """Return int64 (K, K): rows are the truth, columns the prediction."""
    k = logits.shape[1]
    return torch.bincount(labels * k + logits.argmax(1), minlength=k * k).view(k, k)


def score_classes(counts: Tensor, classes: Sequence[str]) -> list[ClassScore]:
    """Return the scores of each class, from counts (K, K) as `count_confusions` gives them."""
    right, called, there = counts.diagonal().tolist(), counts.sum(0).tolist(), counts.sum(1).tolist()
    return [
        {
            "name": name,
            "precision": tp / all_called if all_called else None,
            "recall": tp / support if support else None,
            "f1": 2 * tp / (all_called + support) if all_called + support else None,
            "support": support,
        }
        for name, tp, all_called, support in zip(classes, right, called, there, strict=True)
    ]


def mcnemar(one: Tensor, other: Tensor) -> float:
    """Return the two-sided p-value that two networks are right equally often, from what each got right (N,).

    Exact: of the images that one of them alone got right, each is one's or the other's with probability 1/2.
    Source: McNemar 1947, "Note on the sampling error of the difference between correlated proportions".
    """
    only_one, only_other = int((one & ~other).sum()), int((other & ~one).sum())
    return float(binomtest(only_one, n).pvalue) if (n := only_one + only_other) else 1.0


def compare_pairs(right: dict[str, Tensor]) -> list[Comparison]:
    """Return the comparison of every pair, from what each network got right: name → bool (N,)."""
    pairs = list(combinations(right, 2))
    p_values = [mcnemar(right[one], right[other]) for one, other in pairs]
    return [
        {
            "one": one,
            "other": other,
            "difference": (right[one].double().mean() - right[other].double().mean()).item(),
            "only_one": int((right[one] & ~right[other]).sum()),
            "only_other": int((right[other] & ~right[one]).sum()),
            "p_value": p_value,
            "p_holm": p_holm,
        }
        for (one, other), p_value, p_holm in zip(pairs, p_values, holm(p_values), strict=True)
    ]
