"""Losses on soft targets, so that label smoothing, mixup and cutmix compose; and on what a teacher says."""

import torch.nn.functional as F
from torch import Tensor


def soft_cross_entropy(
    logits: Tensor, targets: Tensor, label_smoothing: float = 0.0, reduction: str = "mean"
) -> Tensor:
    """Return the cross entropy in nats of ``logits`` (B, K) against soft ``targets`` (B, K).

    The mean over the batch, or with ``reduction="none"`` one value an image (B,). In float32 whatever
    the logits' type: a bfloat16 log-softmax keeps two to three digits.

    Source of ``label_smoothing``, which mixes the targets with the uniform distribution: Szegedy et al. 2016,
    "Rethinking the Inception Architecture", section 7.
    """
    smooth = targets * (1 - label_smoothing) + label_smoothing / targets.shape[-1]
    return F.cross_entropy(logits.float(), smooth, reduction=reduction)


def soft_distillation(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return the divergence in nats of the student's probabilities from the teacher's, x temperature².

    Of logits (B, K) both, divided by the temperature; the mean over the batch. The factor keeps the size of
    the gradients when the temperature changes.

    Source: Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", section 2. A cross entropy
    there, which differs by the teacher's entropy and has the same gradient.
    """
    ours, theirs = (F.log_softmax(values.float() / temperature, dim=-1) for values in (logits, teacher))
    return temperature**2 * F.kl_div(ours, theirs, reduction="batchmean", log_target=True)


def hard_distillation(logits: Tensor, teacher: Tensor) -> Tensor:
    """Return the cross entropy in nats of ``logits`` (B, K) against the teacher's likeliest class.

    Source: DeiT (Touvron et al. 2021), section 4, equation 3: without label smoothing.
    """
    return F.cross_entropy(logits.float(), teacher.argmax(-1))
