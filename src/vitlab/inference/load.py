"""A trained network, ready to use: everything it needs is in the checkpoint."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from vitlab.core.checkpoint import CheckpointMeta
from vitlab.core.run_folder import RunFolder
from vitlab.data.preprocess import Preprocess
from vitlab.training.instantiate import load_net


class Classifier(nn.Module):
    """A trained network behind its own preprocessing.

    ``forward`` takes pixels, (B, C, H, W) uint8 or float on the 0..1 scale, of any size, and returns
    logits (B, K).

    Attributes:
        classes: K names.
        config: the run's resolved configuration.
        meta: all that the checkpoint says of the network.
        net: the bare network, for normalised images of the size it was trained at.
        preprocess: pixels → what ``net`` takes.
    """

    def __init__(self, net: nn.Module, meta: CheckpointMeta) -> None:
        super().__init__()
        self.net = net
        self.preprocess = Preprocess(size=meta["input_size"], mean=meta["mean"], std=meta["std"])
        self.meta = meta
        self.classes: list[str] = meta["classes"]
        self.config: dict[str, Any] = meta["config"]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits (B, K) of pixels (B, C, H, W)."""
        return self.net(self.preprocess(images))


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
