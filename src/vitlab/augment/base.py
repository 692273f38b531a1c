"""What an augmentation is, and how several make one."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vitlab.errors import UserError


class Augmentation(nn.Module):
    """One augmentation of a batch, with chance apart from arithmetic, so that a test can fix it.

    A subclass writes ``draw`` and ``apply_to``; both work on all images at once, with one draw for
    each image.

    Attributes:
        off_after_epoch: epochs after which the augmentation is left out; None for never.
    """

    off_after_epoch: int | None = None

    def forward(self, images: Tensor, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Augment images (B, C, H, W) and targets (B, K) by what ``generator`` draws."""
        drawn = self.draw(images, generator)
        return self.apply_to(images, targets, *(d.to(images.device, non_blocking=True) for d in drawn))

    def draw(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Draw a batch's parameters from its shape alone: tensors of length B on the CPU."""
        raise NotImplementedError

    def apply_to(self, images: Tensor, targets: Tensor, *drawn: Any) -> tuple[Tensor, Tensor]:
        """Return images and targets changed by what was drawn; the arguments stay as they are."""
        raise NotImplementedError


class ImageOp(Augmentation):
    """An augmentation of the images alone: a subclass writes ``draw`` and ``transform``."""

    def apply_to(self, images: Tensor, targets: Tensor, *drawn: Any) -> tuple[Tensor, Tensor]:
        return self.transform(images, *drawn), targets

    def transform(self, images: Tensor, *drawn: Any) -> Tensor:
        """Return the images (B, C, H, W) changed by what was drawn."""
        raise NotImplementedError


class Compose(nn.Module):
    """Augmentations one after the other.

    Args:
        ops: name → augmentation, in order. Names let a command line reach in
            (``augment.ops.crop.padding=2``); None leaves an operation out
            (``augment.ops.flip=null``).

    Raises:
        UserError: if an entry is not an augmentation.
    """

    def __init__(self, *, ops: Mapping[str, nn.Module | None]) -> None:
        super().__init__()
        self.ops = nn.ModuleDict()
        for name, op in ops.items():
            if op is None:
                continue
            if not isinstance(op, nn.Module):
                raise UserError(f"augment.ops.{name} must be an augmentation with a _target_, but is {op!r}.")
            self.ops[name] = op

    def forward(
        self, images: Tensor, targets: Tensor, generator: torch.Generator, epoch: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Augment images (B, C, H, W) and targets (B, K) by what ``generator`` draws.

        Args:
            epoch: of the run, from 0; operations with ``off_after_epoch`` end by it.
        """
        for op in self.ops.values():
            last = getattr(op, "off_after_epoch", None)
            if last is None or epoch < last:
                images, targets = op(images, targets, generator)
        return images, targets
