"""The policies draw what their papers say: operations, strengths, signs and probabilities, for each image."""

import itertools

import pytest
import torch
from timm.data.auto_augment import LEVEL_TO_ARG, rand_augment_transform
from torchvision.transforms import AutoAugmentPolicy, v2

from tests.augment.helpers import generator
from tests.augment.test_pixels import assert_within_one_level, of_torchvision, pictures
from vitlab.augment import policies
from vitlab.augment.pixels import OPS
from vitlab.augment.policies import AutoAugment, Policy, RandAugment, TrivialAugment

EMPTY = torch.empty(4000, 3, 32, 24, dtype=torch.uint8)  # draws read the shape alone
PLAIN = {"interpolation": "nearest", "fill": 0}
RAND = {"num_ops": 2, "magnitude": 9, "magnitude_std": 0.0, "p": 1.0, "space": "paper", **PLAIN}


def ours(name: str) -> str:
    """Name of an operation of torchvision or timm here."""
    name = name.removesuffix("Increasing").removesuffix("Rel")
    snake = "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")
    return {"auto_contrast": "autocontrast"}.get(snake, snake)


def value(policy: Policy, op: str, strength: float) -> float:
    """Absolute size of the change, for signed operations, or the value, for the others."""
    values = policy.strength.values(  # type: ignore[attr-defined]
        torch.full((1, 1), OPS.index(op)), torch.full((1, 1), float(strength)), EMPTY, generator()
    )
    return values.item()


def names(policy: Policy) -> set[str]:
    """Names of the operations that a policy draws from."""
    return {OPS[op] for op in policy.strength.ops}  # type: ignore[attr-defined]


def shares(drawn: torch.Tensor) -> dict[str, float]:
    counts = torch.bincount(drawn.flatten(), minlength=len(OPS)) / drawn.numel()
    return {name: share for name, share in zip(OPS, counts.tolist(), strict=True) if share}


@pytest.mark.parametrize(
    ("policy", "transform", "bins"),
    [
        (RandAugment(**RAND), v2.RandAugment(), 31),
        (TrivialAugment(num_levels=31, **PLAIN), v2.TrivialAugmentWide(), 31),
        (AutoAugment(policy="cifar10", **PLAIN), v2.AutoAugment(), 10),
    ],
    ids=["randaugment", "trivialaugment", "autoaugment"],
)
def test_strengths_are_torchvisions(policy, transform, bins):
    for name, (levels, signed) in transform._AUGMENTATION_SPACE.items():
        op, theirs = ours(name), levels(bins, 32, 24)
        for index in range(bins) if theirs is not None else []:
            expected = float(theirs[index])
            found = value(policy, op, index / (bins - 1))
            if op == "solarize":
                expected *= 255
            elif op in ("brightness", "color", "contrast", "sharpness"):
                found, expected = abs(found - 1), abs(expected)
            elif op.startswith("translate"):
                found, expected = abs(found), int(expected + 1e-4)  # theirs is 15.999998 in one place
            elif signed:
                found = abs(found)
            assert found == pytest.approx(expected, abs=1e-4), (name, index)
            assert policy.strength.signed[OPS.index(op)] == signed


def test_strengths_of_the_timm_space_are_timms():
    ops = rand_augment_transform("rand-m9-mstd0.5-inc1").ops
    policy = RandAugment(**RAND | {"space": "timm"})
    assert {ours(op.name) for op in ops} == names(policy)
    assert all(op.prob == 0.5 and op.magnitude == 9 and op.magnitude_std == 0.5 for op in ops)
    sides = {"translate_x": 24, "translate_y": 32}
    for name in (op.name for op in ops):
        op, to_argument = ours(name), LEVEL_TO_ARG[name]
        for magnitude in [0, 0.5, 3, 7.3, 9, 10] if to_argument else []:
            expected = abs(to_argument(magnitude, {})[0]) * sides.get(op, 1)
            found = abs(value(policy, op, magnitude / 10))
            if op in ("brightness", "color", "contrast", "sharpness"):
                expected, found = abs(expected - 1), abs(found - 1)
            assert found == pytest.approx(expected, abs=1e-4), (name, magnitude)


@pytest.mark.parametrize(("name", "theirs"), [("cifar10", "CIFAR10"), ("imagenet", "IMAGENET")])
def test_autoaugment_is_the_published_policy(name, theirs):
    policy = AutoAugment(policy=name, **PLAIN)
    published = v2.AutoAugment(AutoAugmentPolicy[theirs])._policies
    assert len(published) == len(policy.ops) == 25
    for row, pair in enumerate(published):
        for slot, (op, p, level) in enumerate(pair):
            assert OPS[policy.ops[row, slot]] == ours(op)
            assert policy.probabilities[row, slot].item() == pytest.approx(p)
            assert policy.levels[row, slot].item() * 9 == pytest.approx(level or 0)


def test_autoaugment_draws_pairs_evenly_and_each_operation_with_its_probability():
    policy = AutoAugment(policy="cifar10", **PLAIN)
    images = EMPTY[:1].expand(100_000, -1, -1, -1)
    ops, values = policy.draw(images, generator())
    for slot in range(2):
        expected = dict.fromkeys(OPS, 0.0)
        for op, p in zip(policy.ops[:, slot].tolist(), policy.probabilities[:, slot].tolist(), strict=True):
            expected[OPS[op]] += p / 25
            expected["identity"] += (1 - p) / 25
        found = shares(ops[slot])
        for name, share in expected.items():
            assert found.get(name, 0) == pytest.approx(share, abs=0.005), (slot, name)
    # Both of a pair come from one row: where a rotation comes first in CIFAR-10's policy, a shift follows.
    rotated = ops[0] == OPS.index("rotate")
    assert {*shares(ops[1, rotated])} == {"translate_x", "identity"}
    assert values[0, rotated].abs().unique().tolist() == pytest.approx([2 / 9 * 30])
    assert (values[0, rotated] > 0).float().mean() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("space", policies.SPACES)
def test_randaugment_draws_every_operation_as_often(space):
    policy = RandAugment(**RAND | {"space": space})
    ops, values = policy.draw(EMPTY, generator())
    assert ops.shape == values.shape == (2, len(EMPTY))
    share = {"paper": 1 / 14, "timm": 1 / 15}[space]
    for row in ops:
        assert {*shares(row)} == names(policy)
        assert [*shares(row).values()] == pytest.approx([share] * len(names(policy)), abs=0.02)
    # The two are drawn apart from each other, and so are the images.
    assert (ops[0] == ops[1]).float().mean() == pytest.approx(share, abs=0.02)
    rotations = values[ops == OPS.index("rotate")]
    assert (rotations > 0).float().mean() == pytest.approx(0.5, abs=0.07)
    assert rotations.abs().unique().tolist() == pytest.approx([9 if space == "paper" else 27])


def test_randaugment_skips_with_its_probability_and_adds_its_noise():
    policy = RandAugment(**RAND | {"space": "timm", "p": 0.5, "magnitude_std": 0.5})
    ops, values = policy.draw(EMPTY, generator())
    assert shares(ops)["identity"] == pytest.approx(0.5, abs=0.02)
    rotations = values[ops == OPS.index("rotate")].abs() / 3  # back to magnitudes
    assert rotations.max() <= 10
    assert rotations.mean() == pytest.approx(9, abs=0.1)
    assert rotations.std() == pytest.approx(0.5, abs=0.1)
    assert len(rotations.unique()) > 100, "drawn for each operation"
    none = RandAugment(**RAND | {"p": 0.0})
    images = pictures((6, 3, 32, 32))
    assert torch.equal(none(images, torch.eye(6), generator())[0], images)


def test_trivialaugment_draws_one_operation_and_every_strength():
    policy = TrivialAugment(num_levels=31, **PLAIN)
    ops, values = policy.draw(EMPTY, generator())
    assert ops.shape == (1, len(EMPTY))
    assert {*shares(ops)} == names(policy) == names(RandAugment(**RAND))
    angles = values[ops == OPS.index("rotate")].abs() / 4.5
    assert angles.round().unique().tolist() == list(range(31))
    torch.testing.assert_close(angles, angles.round(), atol=1e-4, rtol=0)
    assert angles.mean() == pytest.approx(15, abs=2)


def test_three_augment_draws_one_of_three():
    ops, values = policies.ThreeAugment(threshold=128, min_sigma=0.1, max_sigma=2.0).draw(EMPTY, generator())
    found = shares(ops)
    assert {*found} == {"color", "solarize", "blur"}
    assert all(share == pytest.approx(1 / 3, abs=0.03) for share in found.values())
    assert values[ops == OPS.index("color")].unique().tolist() == [0], "gray"
    assert values[ops == OPS.index("solarize")].unique().tolist() == [128]
    sigma = values[ops == OPS.index("blur")]
    assert 0.1 <= sigma.min() < 0.12
    assert 1.98 < sigma.max() <= 2.0


def test_colour_jitter_draws_factors_and_the_order():
    ops, values = policies.ColorJitter(brightness=0.3, contrast=0.2, color=0.0).draw(EMPTY, generator())
    names = [tuple(OPS[op] for op in column) for column in ops.T.tolist()]
    for order in itertools.permutations(("brightness", "contrast", "color")):
        assert names.count(order) / len(names) == pytest.approx(1 / 6, abs=0.02)
    for name, most in (("brightness", 0.3), ("contrast", 0.2), ("color", 0.0)):
        factors = values[ops == OPS.index(name)]
        assert factors.min().item() == pytest.approx(1 - most, abs=0.001)
        assert factors.max().item() == pytest.approx(1 + most, abs=0.001)


@pytest.mark.parametrize(
    "policy",
    [
        RandAugment(**RAND),
        RandAugment(**RAND | {"interpolation": "bilinear", "num_ops": 3}),
        TrivialAugment(num_levels=31, **PLAIN),
        AutoAugment(policy="imagenet", **PLAIN),
    ],
)
def test_a_batch_is_torchvisions_operations_image_by_image(policy):
    images = pictures((48, 3, 32, 32))
    targets = torch.rand(48, 5)
    out, same = policy(images, targets, generator())
    assert same is targets
    unequal = 0.0
    for i, (ops, values) in enumerate(
        zip(*(t.T.tolist() for t in policy.draw(images, generator())), strict=True)
    ):
        expected = images[i]
        for op, v in zip(ops, values, strict=True):
            expected = of_torchvision(OPS[op], expected, v, policy.interpolation)
        unequal += ((out[i].int() - expected.int()).abs() > 1).float().mean().item()
    # A level off by one can grow in the next operation, and a pixel halfway between two can go either way.
    assert unequal / 48 < 0.004


def test_float_images_have_256_levels():
    images = pictures((8, 3, 32, 32))
    policy = RandAugment(**RAND)
    as_bytes, _ = policy(images, torch.eye(8), generator())
    for dtype in (torch.float32, torch.float64):
        out, _ = policy(images.to(dtype) / 255, torch.eye(8), generator())
        assert out.dtype == dtype
        torch.testing.assert_close(out, as_bytes.to(dtype) / 255)
        for between in (-0.4, 0.4):  # the nearest level counts
            near, _ = policy((images.to(dtype) + between) / 255, torch.eye(8), generator())
            torch.testing.assert_close(near, out)
    assert_within_one_level(
        (policy(images.half() / 255, torch.eye(8), generator())[0] * 255).round().byte(), as_bytes
    )


def test_a_fill_must_fit_the_channels():
    policy = RandAugment(**RAND | {"fill": [1, 2, 3]})
    with pytest.raises(ValueError, match="3 levels of fill for 1"):
        policy(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.eye(2), generator())
