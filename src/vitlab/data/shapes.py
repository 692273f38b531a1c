"""A built-in data set without a download: ten shapes, drawn by code.

Position, size, rotation, colours, textures of shape and background, and noise vary and say nothing
about the class, so that neither colour nor a linear classifier on pixels finds it; the outline
does. Shapes are signed distance functions, negative inside, in a frame where the shape has about
unit radius.
"""

import functools
from collections.abc import Callable

import numpy as np

from vitlab.core.seeding import derive_seed
from vitlab.data.memory import check_memory

CHUNK = 500  # images drawn from one seed: fewer images are a prefix of more
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R 601
RADIUS = (0.26, 0.44)  # of the shorter side
TILT = 0.6  # radians to either side
NOISE = (0.0, 0.08)  # standard deviation
MIN_CONTRAST = 0.35  # of luma between shape and background, so that grayscale can be learned as well
TEXTURE = 0.12  # the most that a texture departs from its colour

Field = np.ndarray  # float32 (N, H, W)


def _box(x: Field, y: Field, half_width: float, half_height: float) -> Field:
    dx, dy = np.abs(x) - half_width, np.abs(y) - half_height
    return np.hypot(np.maximum(dx, 0), np.maximum(dy, 0)) + np.minimum(np.maximum(dx, dy), 0)


def _triangle(x: Field, y: Field) -> Field:
    # Three half-planes: exact except at the corners, where the outline is a little sharper.
    return np.maximum(np.abs(x) * np.float32(0.75**0.5) + y * 0.5, -y) - 0.5


def _star(x: Field, y: Field) -> Field:
    # Fold the plane onto half of one spike, then take the distance to the line from its tip to the notch.
    sector = 2 * np.pi / 5
    angle = np.abs((np.arctan2(x, y) + sector / 2) % sector - sector / 2)
    radius = np.hypot(x, y)
    px, py = radius * np.sin(angle), radius * np.cos(angle)  # the tip is at (0, 1)
    notch = 0.42 * np.array([np.sin(sector / 2), np.cos(sector / 2)])
    edge = notch - np.array([0.0, 1.0])
    normal = np.array([-edge[1], edge[0]]) / np.hypot(*edge)
    return px * np.float32(normal[0]) + (py - 1) * np.float32(normal[1])


def _heart(x: Field, y: Field) -> Field:
    # A square on its corner with half a disk on each upper side.
    side = np.float32(0.5**0.5)
    u, v = (np.abs(x) + y) * side, (y - np.abs(x)) * side
    body = np.maximum(np.abs((x + y) * side + 0.1), np.abs((y - x) * side + 0.1)) - 0.56
    lobe = np.hypot(u - 0.46, v + 0.1) - 0.56
    return np.minimum(body, lobe)


SHAPES: dict[str, Callable[[Field, Field], Field]] = {
    "bar": lambda x, y: _box(x, y, 1.0, 0.28),
    "crescent": lambda x, y: np.maximum(np.hypot(x + 0.1, y) - 0.9, 0.68 - np.hypot(x - 0.42, y)),
    "cross": lambda x, y: np.minimum(_box(x, y, 0.95, 0.26), _box(x, y, 0.26, 0.95)),
    "disk": lambda x, y: np.hypot(x, y) - 0.85,
    "frame": lambda x, y: np.abs(_box(x, y, 0.6, 0.6)) - 0.17,
    "heart": _heart,
    "ring": lambda x, y: np.abs(np.hypot(x, y) - 0.72) - 0.2,
    "square": lambda x, y: _box(x, y, 0.72, 0.72),
    "star": _star,
    "triangle": _triangle,
}


class Shapes:
    """Ten balanced classes of anti-aliased shapes; a function of (seed, image size, channels).

    Args:
        num_train, num_test: images, drawn from different random streams; at least one a class.
        seed: another one draws other images.
        shape, channels: of the images, see `Dataset`.
    """

    name = "shapes"
    on_disk = False

    def __init__(
        self, *, num_train: int, num_test: int, seed: int, shape: tuple[int, int], channels: int
    ) -> None:
        if min(num_train, num_test) < len(SHAPES):
            raise ValueError(f"num_train and num_test must be {len(SHAPES)} or more: one image a class")
        self.classes = tuple(SHAPES)
        self.sizes = {"train": num_train, "test": num_test}
        self.notes: list[str] = []
        self.seed = seed
        self.shape = shape
        self.channels = channels

    def load(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Draw a split: uint8 (N, C, H, W) and int64 labels (N,); image i has class i % 10."""
        number = self.sizes[split]
        labels = np.arange(number, dtype=np.int64) % len(SHAPES)
        check_memory((number, self.channels, *self.shape))
        images = np.empty((number, self.channels, *self.shape), dtype=np.uint8)
        for start in range(0, number, CHUNK):
            rng = np.random.default_rng(derive_seed("shapes", self.seed, split, start))
            drawn = _draw(rng, np.arange(CHUNK) % len(SHAPES), self.shape)
            if self.channels == 1:
                drawn = np.einsum("nchw,c->nhw", drawn, LUMA)[:, None]
            part = images[start : start + CHUNK]
            part[:] = np.rint(drawn[: len(part)] * 255).astype(np.uint8)
        return images, labels


def _draw(rng: np.random.Generator, labels: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Draw one shape for each label, all at once: float32 (N, 3, H, W) in 0..1."""
    number, (height, width) = len(labels), shape
    short = min(height, width)
    uniform = functools.partial(_uniform, rng, number)
    # Pixel centres, in units of the shorter side, with the origin in the middle.
    y = ((np.arange(height, dtype=np.float32) + 0.5 - height / 2) / short)[None, :, None]
    x = ((np.arange(width, dtype=np.float32) + 0.5 - width / 2) / short)[None, None, :]
    radius = uniform(*RADIUS)
    centre_y = uniform(-1, 1) * (np.float32(height / short / 2) - radius)
    centre_x = uniform(-1, 1) * (np.float32(width / short / 2) - radius)
    angle = uniform(-TILT, TILT)
    cos, sin = np.cos(angle), np.sin(angle)
    u = ((x - centre_x) * cos + (y - centre_y) * sin) / radius
    v = ((y - centre_y) * cos - (x - centre_x) * sin) / radius
    distance = np.empty((number, height, width), dtype=np.float32)
    for label, draw in enumerate(SHAPES.values()):
        members = np.flatnonzero(labels == label)
        distance[members] = draw(u[members], v[members])
    # Coverage of the pixel, half a pixel to either side of the outline.
    inside = np.clip(0.5 - distance * radius * short, 0, 1)[:, None]  # (N, 1, H, W)

    front, back = _colours(rng, number)
    front = front[:, :, None, None] + _texture(rng, number, u, v)[:, None]
    back = back[:, :, None, None] + _texture(rng, number, x * 4, y * 4)[:, None]
    images = back + inside * (front - back)
    noise = rng.standard_normal(images.shape, dtype=np.float32)
    images += noise * uniform(*NOISE)[:, None]
    return np.clip(images, 0, 1)


def _colours(rng: np.random.Generator, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw colours (N, 3) of shape and background; the shape's has the higher luma."""
    front, back = rng.random((2, number, 3), dtype=np.float32)
    swap = ((front - back) @ LUMA < 0)[:, None]
    front, back = np.where(swap, back, front), np.where(swap, front, back)
    # Push both apart along gray until they differ enough.
    lacking = np.maximum(MIN_CONTRAST - (front - back) @ LUMA, 0)[:, None] / 2
    return np.clip(front + lacking, 0, 1), np.clip(back - lacking, 0, 1)


def _texture(rng: np.random.Generator, number: int, x: Field, y: Field) -> Field:
    """Draw textures (N, H, W) around 0: a slope, waves or a checkerboard, of any direction."""
    uniform = functools.partial(_uniform, rng, number)
    angle, phase, pitch = uniform(-np.pi, np.pi), uniform(-np.pi, np.pi), uniform(2.0, 7.0)
    along = x * np.cos(angle) + y * np.sin(angle)
    across = y * np.cos(angle) - x * np.sin(angle)
    wave = np.sin(along * pitch + phase)
    style = rng.integers(0, 3, (number, 1, 1))
    field = np.where(style == 0, along / 2, np.where(style == 1, wave, wave * np.sin(across * pitch)))
    return np.clip(field, -1, 1) * uniform(0, TEXTURE)


def _uniform(rng: np.random.Generator, number: int, low: float, high: float) -> np.ndarray:
    """Draw float32 (N, 1, 1)."""
    return rng.uniform(low, high, (number, 1, 1)).astype(np.float32)
