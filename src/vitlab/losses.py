"""Losses on soft targets, so that label smoothing, mixup and cutmix compose."""

import torch.nn.functional as F
from torch import Tensor


def smooth(targets: Tensor, label_smoothing: float) -> Tensor:
    """Mix ``targets`` (B, K), rows that sum to one, with the uniform distribution.

    Source: Szegedy et al. 2016, "Rethinking the Inception Architecture", section 7.
    """
    return targets * (1 - label_smoothing) + label_smoothing / targets.shape[-1]


def soft_cross_entropy(
    logits: Tensor, targets: Tensor, label_smoothing: float = 0.0, reduction: str = "mean"
) -> Tensor:
    """Return the cross entropy in nats of ``logits`` (B, K) against soft ``targets`` (B, K).

    The mean over the batch, or with ``reduction="none"`` one value an image (B,). In float32 whatever
    the logits' type: a bfloat16 log-softmax keeps two to three digits.
    """
    return F.cross_entropy(logits.float(), smooth(targets, label_smoothing), reduction=reduction)
