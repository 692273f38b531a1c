"""What an augmentation is, and how several make one."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class RunFacts:
    """What an augmentation may know of the run, to say which of its settings are doubtful."""

    image_size: tuple[int, int]  # height and width
    num_patches: int | None  # of an image; None where the model has none
    epochs: int  # of the whole run
    images_per_process: int  # in a batch


class Augmentation(nn.Module):
    """One augmentation of a batch, with chance apart from arithmetic, so that a test can fix it.

    Images are (B, C, H, W) uint8, or float from 0 to 1, and targets float (B, K), one-hot or soft. The
    generator is on the CPU whatever the device, and the only source of chance: the draws are a few numbers an
    image, every device gets the same ones, and nothing has to be read back from a GPU to know them.

    A subclass writes ``draw`` and ``apply_to``, which work on all images at once, with one draw for each.

    Attributes:
        off_after_epoch: epochs after which the augmentation is left out; None for never.
        apply_to: images, targets and what was drawn → images and targets, without changing its arguments.
    """

    off_after_epoch: int | None = None
    apply_to: Callable[..., tuple[Tensor, Tensor]]

    def forward(self, images: Tensor, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Augment images (B, C, H, W) and targets (B, K) by what ``generator`` draws."""
        drawn = self.draw(images, generator)
        return self.apply_to(images, targets, *(d.to(images.device, non_blocking=True) for d in drawn))

    def notes(self, key: str, facts: RunFacts) -> Iterator[str]:
        """Yield which settings are doubtful in this run; ``key`` is their node, such as ``augment.mix``."""
        last = self.off_after_epoch
        if last is not None and last >= facts.epochs:
            yield f"{key}.off_after_epoch={last} has no effect: the run has {facts.epochs} epoch(s)."

    def draw(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Draw a batch's parameters from its shape alone: tensors of length B on the CPU."""
        raise NotImplementedError


class ImageOp(Augmentation):
    """An augmentation of the images alone: a subclass writes ``draw`` and ``transform``.

    Attributes:
        transform: images (B, C, H, W) and what was drawn → images.
    """

    transform: Callable[..., Tensor]

    def apply_to(self, images: Tensor, targets: Tensor, *drawn: Tensor) -> tuple[Tensor, Tensor]:
        """Return the images transformed, and the targets as they are."""
        return self.transform(images, *drawn), targets


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
    """

    def __init__(self, *, ops: Sequence[str], **augmentations: Augmentation) -> None:
        super().__init__()
        assert len({*ops}) == len(ops)
        self.ops = nn.ModuleDict({name: augmentations[name] for name in ops})

    def notes(self, facts: RunFacts) -> Iterator[str]:
        """Yield the notes of the augmentations, in order; see `Augmentation.notes`."""
        for name, op in self.ops.items():
            yield from op.notes(f"augment.{name}", facts)  # type: ignore[operator]

    def forward(
        self, images: Tensor, targets: Tensor, generator: torch.Generator, epoch: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Augment images (B, C, H, W) and targets (B, K) by what ``generator`` draws.

        Args:
            epoch: of the run, from 0; operations with ``off_after_epoch`` end by it.
        """
        if len(images) == 0:
            return images, targets
        for op in self.ops.values():
            if op.off_after_epoch is None or epoch < op.off_after_epoch:  # type: ignore[operator]
                images, targets = op(images, targets, generator)
        return images, targets
