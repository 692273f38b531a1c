"""Mixup and cutmix: every image with its neighbour in the batch, and the targets by the same share."""

from collections.abc import Iterator

import torch
from torch import Tensor

from vitlab.augment.base import Augmentation, RunFacts, to_pixels
from vitlab.augment.boxes import get_size, make_mask, place_around


class MixupCutmix(Augmentation):
    """Mix each image with the one before it in the batch, by mixup or by cutmix, each with a λ of its own.

    Mixup (Zhang et al. 2018, "mixup: Beyond Empirical Risk Minimization", section 2) keeps the share λ of
    every pixel. Cutmix (Yun et al. 2019, "CutMix", section 3.1) pastes a box with the share 1 - λ of the
    area around a centre anywhere in the image; λ is then what the box, cut off at the border, left of the
    image. Both draw λ from Beta(α, α), and the targets become λ · own + (1 - λ) · partner's.

    The order of a batch is random, so the neighbour is a random partner. DeiT and CCT, through timm, draw
    one λ for a whole batch; here each image has its own.

    Args:
        mixup_alpha: α of mixup; 0 or None for no mixup.
        cutmix_alpha: α of cutmix; 0 or None for no cutmix.
        p: probability of an image to be mixed.
        switch_p: probability of a mixed image to be mixed by cutmix; without effect if one is off.
        off_after_epoch: epochs after which nothing is mixed any more; None for never.

    Raises:
        ValueError: both alphas are off.
    """

    def __init__(
        self,
        *,
        mixup_alpha: float | None,
        cutmix_alpha: float | None,
        p: float,
        switch_p: float,
        off_after_epoch: int | None,
    ) -> None:
        super().__init__()
        if not mixup_alpha and not cutmix_alpha:
            raise ValueError("mixup_alpha and cutmix_alpha are both off")
        self.mixup_alpha = mixup_alpha or 0
        self.cutmix_alpha = cutmix_alpha or 0
        self.p = p
        self.switch_p = switch_p if self.mixup_alpha and self.cutmix_alpha else float(self.cutmix_alpha > 0)
        self.off_after_epoch = off_after_epoch

    def notes(self, key: str, facts: RunFacts) -> Iterator[str]:
        """Say where a batch has no partner for an image."""
        yield from super().notes(key, facts)
        if facts.images_per_process == 1:
            yield f"{key} has no effect: a batch of one image has no partner in it."

    def draw(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw mixup's share λ of the own image (B,), else 1, and cutmix's box (B, 4), else an empty one."""
        number, size = len(images), get_size(images)
        chance, switch = torch.rand(2, number, generator=generator)
        mixed, by_cutmix = chance < self.p, switch < self.switch_p
        shares, cut = torch.ones(number), torch.zeros(number)
        if self.mixup_alpha:
            shares = torch.where(mixed & ~by_cutmix, _beta(self.mixup_alpha, number, generator), shares)
        if self.cutmix_alpha:
            cut = torch.where(mixed & by_cutmix, 1 - _beta(self.cutmix_alpha, number, generator), cut)
        sides = (cut.sqrt()[:, None] * size).long()  # (B, 2)
        return shares, place_around(sides, size, generator)

    def apply_to(
        self, images: Tensor, targets: Tensor, shares: Tensor, boxes: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Mix images (B, C, H, W) and targets (B, K) in float32; uint8 is rounded to nearest."""
        # How much of each pixel is the image's own: λ for mixup; for cutmix 1, and 0 in the box.
        own = shares[:, None, None, None] * (1 - make_mask(boxes, images, torch.float32))  # (B, 1, H, W)
        mixed = images.roll(1, 0).float().lerp_(images.float(), own)
        left = shares * (1 - boxes[:, 2] * boxes[:, 3] / (images.shape[2] * images.shape[3]))
        return to_pixels(mixed, images.dtype), torch.lerp(targets.roll(1, 0), targets, left[:, None])


def _beta(alpha: float, number: int, generator: torch.Generator) -> Tensor:
    """Draw from Beta(alpha, alpha): (number,) float32."""
    # A Dirichlet distribution over two is a beta distribution. The function is private, but
    # torch.distributions takes no generator and would draw from the global one.
    return torch._sample_dirichlet(torch.full((number, 2), float(alpha)), generator)[:, 0]
