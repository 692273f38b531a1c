"""What the tests of augmentations share: chance that is fixed, images, and a comparison of distributions."""

import torch


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def pixels(shape, dtype=torch.uint8):
    """Noise of every level but black."""
    images = torch.randint(1, 256, shape, generator=generator(), dtype=torch.uint8)
    return images if dtype == torch.uint8 else (images / 255).to(dtype)


def assert_distributed_alike(ours, theirs, points, atol):
    """Compare how much of each sample lies at or below each of the points."""
    torch.testing.assert_close(
        *((sample[:, None] <= points).float().mean(0) for sample in (ours, theirs)), atol=atol, rtol=0
    )
