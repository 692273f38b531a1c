"""Mixup and cutmix: exact pixels and targets for fixed draws, and the distribution of the draws."""

import pytest
import torch

from tests.augment.helpers import assert_distributed_alike, generator, pixels
from vitlab.augment import Compose
from vitlab.augment.base import RunFacts
from vitlab.augment.mix import MixupCutmix
from vitlab.tasks.losses import soft_cross_entropy

NO_BOX = [0, 0, 0, 0]


def make(**options):
    defaults = {"mixup_alpha": 0.8, "cutmix_alpha": 1.0, "p": 1.0, "switch_p": 0.5, "off_after_epoch": None}
    return MixupCutmix(**defaults | options)


def batch(number=4, size=(3, 6, 5)):
    return pixels((number, *size)), torch.eye(5)[torch.arange(number) % 5]


def drawn(number, size=(3, 32, 32), **options):
    shares, boxes = make(**options).draw(torch.empty(number, *size), generator())
    return shares, boxes, boxes[:, 2] * boxes[:, 3] > 0


def test_a_fixed_draw_gives_the_pixels_and_targets_of_the_papers():
    images, targets = batch()
    shares = torch.tensor([0.3137, 1.0, 0.75, 1.0])
    boxes = torch.tensor([NO_BOX, [1, 2, 3, 2], NO_BOX, NO_BOX])
    out, soft = make().apply_to(images, targets, shares, boxes)
    own = images.double()
    for i, share in ((0, 0.3137), (2, 0.75)):  # mixup; the partner is the one before, of the first the last
        expected = (share * own[i] + (1 - share) * own[i - 1]).round()
        assert torch.equal(out[i], expected.to(torch.uint8))
        torch.testing.assert_close(soft[i], share * targets[i] + (1 - share) * targets[i - 1])
    pasted = images[1].clone()
    pasted[:, 1:4, 2:4] = images[0, :, 1:4, 2:4]
    assert torch.equal(out[1], pasted)
    torch.testing.assert_close(soft[1], 0.8 * targets[1] + 0.2 * targets[0])  # 6 of 30 pixels
    assert torch.equal(out[3], images[3])
    assert torch.equal(soft[3], targets[3])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_floats_are_mixed_as_they_are(dtype):
    images = torch.rand(3, 1, 4, 4, generator=generator()).to(dtype)
    out, _ = make().apply_to(
        images, torch.eye(3), torch.tensor([0.25, 1.0, 1.0]), torch.tensor([NO_BOX, [0, 0, 4, 2], NO_BOX])
    )
    assert out.dtype == dtype
    torch.testing.assert_close(out[0], (0.25 * images[0].double() + 0.75 * images[2].double()).to(dtype))
    assert torch.equal(out[1, :, :, :2], images[0, :, :, :2])
    assert torch.equal(out[1, :, :, 2:], images[1, :, :, 2:])
    assert torch.equal(out[2], images[2])


def test_one_image_is_its_own_partner():
    images, targets = batch(1)
    out, soft = make()(images, targets, generator())
    assert torch.equal(out, images)
    torch.testing.assert_close(soft, targets)


def test_each_pixel_has_the_share_that_its_target_says():
    """White images of class 1 after black ones of class 0: brightness and target must agree."""
    number = 64
    labels = torch.arange(number) % 2
    images = (labels * 1.0)[:, None, None, None].expand(number, 3, 17, 23).contiguous()
    out, soft = make()(images, torch.eye(2)[labels], generator())
    torch.testing.assert_close(out.mean((1, 2, 3)), soft[:, 1])
    assert (soft.max(1).values < 0.99).sum() > 40


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0])
def test_mixup_draws_from_the_beta_distribution(alpha):
    shares, _, cut = drawn(20_000, (1, 2, 2), mixup_alpha=alpha, cutmix_alpha=None)
    assert not cut.any()
    reference = torch.distributions.Beta(torch.tensor(alpha), torch.tensor(alpha))
    torch.manual_seed(0)
    expected = reference.sample((200_000,))
    assert_distributed_alike(shares, expected, torch.linspace(0.05, 0.95, 19), atol=0.015)
    assert shares.unique().numel() > 18_000, "one λ for each image"


def test_cutmix_draws_boxes_by_area_around_any_centre():
    shares, boxes, _ = drawn(20_000, (3, 40, 20), mixup_alpha=0, cutmix_alpha=1.0)
    assert (shares == 1).all()
    top, left, height, width = boxes.unbind(1)
    assert (top >= 0).all()
    assert (top + height <= 40).all()
    assert (left + width <= 20).all()
    # A box that no border cuts keeps the image's shape. With α = 1 the area is uniform: side² ~ U(0, 1).
    middle = (top > 0) & (left > 0) & (top + height < 40) & (left + width < 20)
    assert ((height[middle] - 2 * width[middle]).abs() <= 1).all()
    rows = ((top <= 20) & (top + height > 20)).float().mean()
    # How often row 20 is covered must be what centres and sides of their distributions give.
    side = torch.rand(200_000, generator=generator(1)).sqrt()
    centre = torch.rand(200_000, generator=generator(2))
    assert abs(rows - ((centre - 0.5).abs() < side / 2).float().mean()) < 0.02
    corner = ((top == 0) & (left == 0) & (height * width > 0)).float().mean()
    assert 0.05 < corner < 0.35, "centres lie near the border too"


@pytest.mark.parametrize(("p", "switch_p"), [(1.0, 0.5), (0.4, 0.5), (1.0, 0.9), (0.0, 0.5)])
def test_probability_and_switch_are_drawn_for_each_image(p, switch_p):
    number = 4000
    shares, _, cut = drawn(number, p=p, switch_p=switch_p)
    mixup = shares < 1
    assert not (mixup & cut).any()
    assert mixup.float().mean() == pytest.approx(p * (1 - switch_p), abs=0.025)
    # A few boxes have no area: λ near 1.
    assert cut.float().mean() == pytest.approx(p * switch_p, abs=0.025)


def test_with_one_alpha_off_the_other_takes_all():
    for off in (0, None):
        shares, _, cut = drawn(500, cutmix_alpha=off, switch_p=0.9)
        assert (shares < 1).all()
        assert not cut.any()
        shares, _, cut = drawn(500, mixup_alpha=off, switch_p=0.1)
        assert (shares == 1).all()
        assert cut.float().mean() > 0.95


def test_mixing_ends_after_its_epochs():
    images, targets = batch(8)
    both = Compose(ops=["mix"], mix=make(off_after_epoch=2))
    assert not torch.equal(both(images, targets, generator(), 1)[1], targets)
    out, same = both(images, targets, generator(), 2)
    assert torch.equal(out, images)
    assert torch.equal(same, targets)


def test_what_of_mixing_has_no_effect_is_said():
    both = Compose(ops=["mix"], mix=make(off_after_epoch=2))
    assert list(both.notes(RunFacts((32, 32), 64, 3, 2))) == []
    late, alone = both.notes(RunFacts((32, 32), 64, 1, 1))
    assert "augment.mix.off_after_epoch=2 has no effect: the run has 1 epoch" in late
    assert "augment.mix has no effect: a batch of one image has no partner" in alone


def test_a_gradient_flows_through_soft_targets():
    images, targets = batch(8, (3, 8, 8))
    out, soft = make()(images, targets, generator())
    weight = torch.zeros(3 * 64, 5, requires_grad=True)
    logits = out.flatten(1).float() / 255 @ weight
    soft_cross_entropy(logits, soft, 0.1).backward()
    smoothed = 0.9 * soft + 0.1 / 5
    expected = out.flatten(1).float().T / 255 @ (torch.full((8, 5), 0.2) - smoothed) / 8
    torch.testing.assert_close(weight.grad, expected)
