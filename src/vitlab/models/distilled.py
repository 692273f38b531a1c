"""A Vision Transformer with a second token and head, that learn from a teacher."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from vitlab.models.vit import ViT, classifier


def has_teacher_head(net: nn.Module) -> bool:
    """Whether ``net`` has a second head, for the teacher, and ``forward(images, per_head=True)``."""
    return getattr(net, "has_teacher_head", False)


class DistilledViT(ViT):
    """`ViT` with a distillation token: it attends as a class token does, and has a head of its own.

    Under ``task=distill`` the head of the pooling learns the labels and the other one the teacher; the
    prediction is the mean of their logits, in training and evaluation.

    Source: DeiT, "Training data-efficient image transformers & distillation through attention" (Touvron
    et al. 2021), section 4. The token stands first; ``class_token`` holds it, and the pooling's after it.
    """

    own_tokens = 1
    has_teacher_head = True

    def __init__(self, *, dim: int, num_classes: int, **options: Any) -> None:
        super().__init__(dim=dim, num_classes=num_classes, **options)
        self.distillation_head = classifier(dim, num_classes)

    def forward(self, images: Tensor, per_head: bool = False) -> Tensor:
        """Return the mean of the heads' logits ``(B, K)``; or per head ``(B, 2, K)``, the teacher's last."""
        tokens = self.encode(images)  # (B, 1 + prefix of the pooling + N, dim)
        labels = self.head(self.pool(tokens[:, 1:]))  # (B, K)
        # The pooling's norm serves both, as in DeiT's code.
        taught = self.distillation_head(self.pool.norm(tokens[:, 0]))  # (B, K)
        return torch.stack([labels, taught], dim=1) if per_head else (labels + taught) / 2

    def notes_without_teacher(self) -> Iterator[str]:
        """Yield what is doubtful about training it on the labels alone."""
        yield (
            "the second head of this model learns the same as the first without a teacher; task=distill "
            "gives it one."
        )
