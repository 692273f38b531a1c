"""Calibration: whether a network is right as often as it says, and what a temperature makes of that.

The expected calibration error (ECE; Guo et al. 2017, "On Calibration of Modern Neural Networks", equation 3)
is the mean over the images of |accuracy - confidence| of their bin, where a confidence is the largest
probability. Here the bins hold equally many images (Nguyen & O'Connor 2015, "Posterior calibration and
exploratory analysis for natural language processing models"; Nixon et al. 2019, "Measuring Calibration in
Deep Learning"): of bins of equal width most are nearly empty, since most confidences lie near 1.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar
from torch import Tensor

from vitlab.inference.scores import log_loss

BINS = 15
HOTTEST = 20.0  # temperatures are sought from 1/20 to this


@dataclass(frozen=True)
class Reliability:
    """Bins of images by rising confidence, a value a bin: ``(bins,)``.

    Attributes:
        confidence: the mean, 0..1.
        accuracy: the share that is right.
        count: images.
    """

    confidence: np.ndarray
    accuracy: np.ndarray
    count: np.ndarray

    @property
    def ece(self) -> float:
        """The expected calibration error, 0..1."""
        return float(np.average(np.abs(self.accuracy - self.confidence), weights=self.count))


def confidences(logits: Tensor) -> Tensor:
    """Return the largest probability of each image: (N, K) → float64 (N,)."""
    return logits.double().softmax(1).amax(1)


def measure_reliability(logits: Tensor, labels: Tensor, bins: int = BINS) -> Reliability:
    """Return bins of as equal a number of images as can be; of fewer images than bins a bin an image.

    Images of equal confidence, such as all those of exactly 1, may fall into several bins. They share their
    mean accuracy, so that nothing depends on the order of the images.

    Args:
        logits: (N, K).
        labels: (N,).
    """
    confidence = confidences(logits).numpy()
    right = (logits.argmax(1) == labels).numpy()
    _, group, sizes = np.unique(confidence, return_inverse=True, return_counts=True)
    shared = (np.bincount(group, right) / sizes)[group]  # (N,)
    order = np.argsort(confidence)
    parts = np.array_split(order, min(bins, len(order)))
    return Reliability(
        confidence=np.array([confidence[part].mean() for part in parts]),
        accuracy=np.array([shared[part].mean() for part in parts]),
        count=np.array([len(part) for part in parts]),
    )


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the temperature T whose ``logits / T`` have the least log loss, between 1/20 and 20.

    Source: Guo et al. 2017, section 4.2. It changes no prediction. The loss is convex in 1/T, so it has one
    minimum in log T, which bounded search finds. Where every image is right, that is T's lower end.

    Args:
        logits: (N, K) of images that were neither trained on nor are tested on.
        labels: (N,).
    """
    bound = math.log(HOTTEST)
    found = minimize_scalar(
        lambda log_t: log_loss(logits / math.exp(log_t), labels), bounds=(-bound, bound), method="bounded"
    )
    return math.exp(found.x)
