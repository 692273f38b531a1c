"""A trained network, ready to use: everything it needs is in the checkpoint."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from vitlab.core.checkpoint import CheckpointMeta
from vitlab.core.run_folder import RunFolder
from vitlab.data.decode import CHUNK, convert_image, read_image
from vitlab.data.preprocess import Preprocess
from vitlab.inference.inputs import broken_images
from vitlab.models.layers import pair
from vitlab.training.instantiate import load_net

OneImage = str | Path | Image.Image | np.ndarray


@dataclass(frozen=True)
class Prediction:
    """What a network says of an image.

    Attributes:
        class_name: the most probable class.
        probability: of that class.
        probabilities: by class, all of them, in the order of the logits.
    """

    class_name: str
    probability: float
    probabilities: dict[str, float]

    def top(self, k: int = 5) -> list[tuple[str, float]]:
        """Return the k most probable classes with their probabilities, the best first."""
        return sorted(self.probabilities.items(), key=lambda pair: -pair[1])[:k]


class Classifier(nn.Module):
    """A trained network behind its own preprocessing.

    ``forward`` takes pixels, (B, C, H, W) uint8 or float on the 0..1 scale, of any size, and returns
    logits (B, K); ``predict`` takes images of every kind and returns class names.

    Attributes:
        classes: K names.
        config: the run's resolved configuration.
        meta: all that the checkpoint says of the network.
        net: the bare network, for normalised images of the size it was trained at.
        preprocess: pixels → what ``net`` takes.
        stored_size: (height, width) at which the run's data were decoded.
        channels: C.
    """

    def __init__(self, net: nn.Module, meta: CheckpointMeta) -> None:
        super().__init__()
        self.net = net
        self.preprocess = Preprocess(size=meta["input_size"], mean=meta["mean"], std=meta["std"])
        self.meta = meta
        self.classes: list[str] = meta["classes"]
        self.config: dict[str, Any] = meta["config"]
        self.stored_size = pair("data.image_size", self.config["data"]["image_size"])
        self.channels: int = self.config["data"]["channels"]

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, K) of pixels (B, C, H, W)."""
        return self.net(self.preprocess(images))

    @overload
    def predict(self, images: OneImage) -> Prediction: ...  # type: ignore[overload-overlap]  # str is a sequence
    @overload
    def predict(self, images: Tensor) -> Any: ...  # one or a list, by its dimensions
    @overload
    def predict(self, images: Sequence[OneImage | Tensor]) -> list[Prediction]: ...
    def predict(self, images: Any) -> Any:
        """Return a `Prediction` of an image, or a list of them.

        Files, PIL images and arrays are converted as the run's data were (see `vitlab.data.decode`), at
        ``stored_size``; tensors are pixels that have been converted already. It computes on the device that
        the module is on, and in float32.

        Args:
            images: the path of an image file; a PIL image; an array of uint8, (H, W), (H, W, 3) or
                (H, W, 4); a tensor (C, H, W) of uint8, or of floats on the 0..1 scale. Or several: a sequence
                of these, mixed as they come, or a tensor (B, C, H, W).

        Raises:
            UserError: a file cannot be read as an image.
            TypeError, ValueError: it is none of these.
        """
        several = images.ndim == 4 if isinstance(images, Tensor) else isinstance(images, Sequence)
        if not several or isinstance(images, str):
            return self.predict([images])[0]
        found: list[Prediction] = []
        for start in range(0, len(images), CHUNK):
            some = images[start : start + CHUNK]
            found += self._predict([some] if isinstance(some, Tensor) else [self._read(one) for one in some])
        return found

    @torch.no_grad()
    def _predict(self, images: Sequence[Tensor]) -> list[Prediction]:
        """Return what is said of tensors (B, C, H, W), whose sizes may differ, as of one batch."""
        device = self.preprocess.mean.device
        batch = torch.cat([self.preprocess(_check_scale(one).to(device)) for one in images])
        predictions = []
        for row in self.net(batch).float().softmax(-1).tolist():
            best = max(range(len(row)), key=row.__getitem__)
            named = dict(zip(self.classes, row, strict=True))
            predictions.append(Prediction(self.classes[best], row[best], named))
        return predictions

    def _read(self, image: Any) -> Tensor:
        """Return pixels (1, C, H, W) of one image of any kind."""
        if isinstance(image, Tensor):
            if image.ndim != 3:
                raise ValueError(f"expected a tensor of shape (C, H, W), got {tuple(image.shape)}")
            return image[None]
        if isinstance(image, str | Path):
            with broken_images(image):
                pixels = read_image(Path(image), self.stored_size, self.channels)
            return torch.tensor(pixels)[None]
        if isinstance(image, np.ndarray):
            if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.shape[2:] not in ((), (3,), (4,)):
                raise ValueError(
                    "expected an array of uint8 of shape (H, W), (H, W, 3) or (H, W, 4), got "
                    f"{image.dtype} {image.shape}"
                )
            image = Image.fromarray(image)
        if not isinstance(image, Image.Image):
            raise TypeError(
                "expected the path of an image file, a PIL image, an array or a tensor, got "
                f"{type(image).__name__}"
            )
        return torch.tensor(convert_image(image, self.stored_size, self.channels))[None]


def _check_scale(images: Tensor) -> Tensor:
    """Return the images, whose floats must be on the 0..1 scale, give or take what resizing adds.

    Raises:
        ValueError: they are on another, and the predictions would be wrong without a sign.
    """
    if images.is_floating_point() and not ((images > -0.1) & (images < 1.1)).all():
        raise ValueError(
            "expected floating-point pixels on the 0..1 scale, not normalised, got "
            f"{images.min():.3g} to {images.max():.3g}"
        )
    return images


def has_average(config: Mapping[str, Any]) -> bool:
    """Say whether a run kept averaged weights, beside those that the optimizer left."""
    return config["callbacks"].get("ema", {}).get("decay") is not None


def load(path: str | Path, *, raw: bool = False) -> Classifier:
    """Return the classifier of a run folder (its best checkpoint, or the last) or of a checkpoint file.

    On the CPU and in eval mode; see `load_net` for what reading a checkpoint may and may not do.

    Args:
        path: the folder or the file.
        raw: of a run with ``callbacks.ema``, take the weights as the optimizer left them, not their average.

    Raises:
        UserError: there is no checkpoint there, it is damaged, or it is not one of vitlab's.
    """
    path = Path(path)
    if path.is_dir() or path.name == "config.yaml":
        folder = RunFolder.find(path)
        path = folder.best if folder.best.exists() else folder.last
    return Classifier(*load_net(path, raw=raw)).eval()
