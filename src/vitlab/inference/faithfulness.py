"""Whether a map says something about its model: deletion and insertion, held against two controls.

A map is a ranking of pixels. If it names what the prediction rests on, the probability of the class falls
fast as the first pixels are deleted (a small area under that curve) and rises fast as they are inserted (a
large one). A method says something about this model where it does better than a random map, and better than
itself on the same network with random weights, whose maps show nothing that was learned. Methods are compared
by insertion - deletion: the areas alone also depend on how fine a map is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor, nn

from vitlab.core.files import csv_text
from vitlab.inference.attribution import enlarge

STEPS = 20  # points of a curve, after its first
BATCH = 256  # images in one forward pass
RANDOM = "random"  # the method whose maps are noise, and the network whose weights are
TRAINED = "trained"
FEWEST = 8  # images of which an interval is given: a bootstrap of fewer is too narrow


class Score(TypedDict):
    """A row of ``scores.csv``: means over the images.

    Attributes:
        method: its name; ``random`` for maps of noise.
        network: which drew the maps, ``trained`` or ``random``; the trained one is always scored.
        deletion, insertion: areas under the curves, 0..1.
        low, high: 95 % interval of insertion - deletion; None of too few images.
        n: images.
    """

    method: str
    network: str
    deletion: float
    insertion: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class Areas:
    """Areas under the two curves, an image each: ``(B,)``, 0..1."""

    deletion: Tensor
    insertion: Tensor

    @property
    def difference(self) -> np.ndarray:
        """Insertion - deletion, what methods are compared by."""
        return (self.insertion - self.deletion).double().numpy()


@torch.no_grad()
def measure_areas(net: nn.Module, images: Tensor, classes: Tensor, maps: Tensor) -> Areas:
    """Return the areas under deletion's and insertion's curves of the class's probability.

    Source: "RISE" (Petsiuk et al. 2018, section 4.2). What is deleted gets the mean colour, and insertion
    starts from it, where RISE starts from a blurred image: at 32 pixels a blur leaves the class to be seen.

    Args:
        net: images → logits (B, K).
        images: (B, C, H, W), normalised, so that zero is the mean colour.
        classes: (B,), whose probability is followed.
        maps: (B, h, w), of any size.
    """
    ranked = enlarge(maps, images.shape[-2:]).flatten(1)  # (B, H * W)
    ranks = ranked.argsort(descending=True, stable=True).argsort()
    pixels = ranks.shape[1]
    counts = torch.linspace(0, pixels, STEPS + 1).round().to(images.device)
    # (B, STEPS + 1, 1, H, W): which pixels come first, at each point of a curve.
    first = (ranks[:, None] < counts[:, None]).unflatten(-1, images.shape[-2:])[:, :, None]
    areas = [
        torch.trapezoid(_probabilities(net, images[:, None] * kept, classes), counts / pixels)
        for kept in (~first, first)
    ]
    return Areas(*areas)


def _probabilities(net: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    """Return the class's probability along curves of images: ``(B, points, C, H, W) -> (B, points)``."""
    flat = images.flatten(0, 1)
    logits = torch.cat([net(chunk) for chunk in flat.split(BATCH)]).unflatten(0, images.shape[:2])
    return logits.softmax(-1).gather(-1, classes[:, None, None].expand(-1, images.shape[1], 1))[..., 0]


def random_maps(images: Tensor, side: tuple[int, int], seed: int = 0) -> Tensor:
    """Return maps of noise, ``(B, *side)``: as coarse as those of the methods, or they would be too easy."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(len(images), *side, generator=generator).to(images.device)


def join(batches: Sequence[Areas]) -> Areas:
    """Return the areas of all images."""
    deletion, insertion = (
        torch.cat([getattr(own, name) for own in batches]).cpu() for name in ("deletion", "insertion")
    )
    return Areas(deletion, insertion)


def score(method: str, network: str, areas: Areas) -> Score:
    """Return a row of the table."""
    low, high = interval(areas.difference) or (None, None)
    return {
        "method": method,
        "network": network,
        "deletion": float(areas.deletion.mean()),
        "insertion": float(areas.insertion.mean()),
        "low": low,
        "high": high,
        "n": len(areas.deletion),
    }


def interval(values: np.ndarray, seed: int = 0) -> tuple[float, float] | None:
    """Return a 95 % interval of the mean of values (N,), by 2,000 bootstrap samples; None of too few."""
    if len(values) < FEWEST:
        return None
    drawn = np.random.default_rng(seed).choice(values, (2000, len(values)))
    low, high = np.quantile(drawn.mean(1), [0.025, 0.975])
    return float(low), float(high)


def beats_controls(method: str, areas: Mapping[tuple[str, str], Areas]) -> bool | None:
    """Say whether a method does better than both controls, image by image; None of too few images to tell.

    Better: a 95 % interval of the differences lies above 0.
    """
    own = areas[method, TRAINED].difference
    controls = (areas[RANDOM, TRAINED], areas[method, RANDOM])
    intervals = [interval(own - control.difference) for control in controls]
    return None if None in intervals else all(found[0] > 0 for found in intervals if found)


def to_csv(scores: Sequence[Score]) -> str:
    """Return the rows as the text of ``scores.csv``."""
    return csv_text(list(Score.__annotations__), scores)
