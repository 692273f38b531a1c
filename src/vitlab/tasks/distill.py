"""Distillation: classification whose loss also asks a trained teacher."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from vitlab.core.batch import Batch
from vitlab.models.distilled import has_teacher_head
from vitlab.models.layers import choose
from vitlab.tasks.classify import Classify, num_correct
from vitlab.tasks.losses import hard_distillation, soft_cross_entropy, soft_distillation


class Distill(Classify):
    """Train ``net`` on its labels and on what ``teacher`` says of the same augmented, mixed images.

    The loss is (1 - weight) x the labels' + weight x the teacher's. Both are of the same logits, or, for a
    network with a head for the teacher, each of its own head.

    Source: soft, "Distilling the Knowledge in a Neural Network" (Hinton et al. 2015, section 2); hard and the
    token, DeiT (Touvron et al. 2021, section 4), whose weight is a half.

    Args:
        teacher: images (B, C, H, W) as ``net`` gets them → logits (B, K), without gradients. It must be no
            `nn.Module`, or it would become part of the student's checkpoints.
        kind: ``soft`` or ``hard``.
        temperature: of the soft kind.
        weight: of the teacher's loss, 0 to 1.
        classify: the arguments of `Classify`; ``label_smoothing`` is of the labels alone.
    """

    shown = (*Classify.shown, "label_loss", "teacher_loss", "teacher_agreement", "teacher_accuracy")

    def __init__(
        self,
        *,
        teacher: Callable[[Tensor], Tensor],
        kind: str,
        temperature: float,
        weight: float,
        **classify: Any,
    ) -> None:
        super().__init__(**classify)
        self.teacher = teacher
        kinds: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
            "hard": hard_distillation,
            "soft": partial(soft_distillation, temperature=temperature),
        }
        self.teacher_loss = choose("task.kind", kind, kinds)
        self.weight = weight

    def objective(self, batch: Batch) -> tuple[Tensor, list[Tensor]]:
        """Return the loss, and the sums that `shown` names: see `Classify.objective`."""
        images = self._cast(batch.images)
        both = has_teacher_head(self.net)
        heads = self.net(images, per_head=True) if both else self.net(images)[:, None]  # (B, 2 or 1, K)
        taught = self.teacher(batch.images)  # (B, K)
        label_loss = soft_cross_entropy(heads[:, 0], batch.targets, self.label_smoothing)
        teacher_loss = self.teacher_loss(heads[:, -1], taught)
        loss = (1 - self.weight) * label_loss + self.weight * teacher_loss
        logits = heads.detach().mean(1)  # (B, K)
        size = len(images)
        return loss, [
            num_correct(logits, batch.targets),
            label_loss.detach() * size,
            teacher_loss.detach() * size,
            num_correct(logits, taught),
            num_correct(taught, batch.targets),
        ]
