"""What an augmentation is, and how several make one."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vitlab.core.errors import UserError
from vitlab.core.suggest import suggest


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


def to_uint8(levels: Tensor) -> Tensor:
    """Truncate float levels within 0..255, as PIL does."""
    # By way of int16: more than twice as fast on a CPU as from float to uint8 at once.
    return levels.to(torch.int16).to(torch.uint8)


def to_pixels(numbers: Tensor, dtype: torch.dtype) -> Tensor:
    """Return float32 ``numbers`` in the images' type; for uint8 rounded to nearest. May overwrite them."""
    return numbers.to(dtype) if dtype.is_floating_point else to_uint8(numbers.round_())


class Compose(nn.Module):
    """Augmentations one after the other.

    Args:
        ops: names of the augmentations to apply, in order.
        augmentations: those there are, by name; the ones not listed in ``ops`` are not kept.

    Raises:
        UserError: ``ops`` names one that is not there, or one twice.
    """

    def __init__(self, *, ops: Sequence[str], **augmentations: nn.Module) -> None:
        super().__init__()
        for place, name in enumerate(ops):
            if name not in augmentations:
                raise UserError(
                    f"augment.ops names '{name}', which is no augmentation{suggest(name, augmentations)}. "
                    f"There are {', '.join(augmentations) or 'none'}."
                )
            if name in ops[:place]:
                raise UserError(f"augment.ops names '{name}' twice; an augmentation is applied once.")
        self.ops = nn.ModuleDict({name: augmentations[name] for name in ops})

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
