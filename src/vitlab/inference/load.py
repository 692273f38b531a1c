"""A trained network, ready to use: everything it needs is in the checkpoint."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from vitlab.config import check_targets
from vitlab.core.checkpoint import RAW, read_checkpoint
from vitlab.core.errors import UserError
from vitlab.core.run_folder import RunFolder
from vitlab.data.preprocess import Preprocess
from vitlab.models.layers import pair
from vitlab.training.instantiate import build_net, without_start


class Classifier(nn.Module):
    """A trained network behind its own preprocessing.

    ``forward`` takes pixels, (B, C, H, W) uint8 or float on the 0..1 scale, of any size, and returns
    logits (B, K).

    Attributes:
        classes: K names.
        config: the run's resolved configuration.
        net: the bare network, for normalised images of the size it was trained at.
        preprocess: pixels → what ``net`` takes.
    """

    def __init__(self, net: nn.Module, meta: dict[str, Any]) -> None:
        super().__init__()
        self.net = net
        self.preprocess = Preprocess(
            size=pair("input_size", meta["input_size"]), mean=meta["mean"], std=meta["std"]
        )
        self.classes: list[str] = meta["classes"]
        self.config: dict[str, Any] = meta["config"]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.net(self.preprocess(images))


def load(path: str | Path, *, raw: bool = False) -> Classifier:
    """Return the classifier of a run folder (its best checkpoint, or the last) or of a checkpoint file.

    On the CPU and in eval mode. Reading a checkpoint runs no code that it names: only plain types are
    read, and the classes it may build are vitlab's own.

    Args:
        raw: of a run with ``callbacks.ema``, the weights as the optimizer left them and not their average.

    Raises:
        UserError: there is no checkpoint there, it is damaged, or it is not one of vitlab's.
    """
    path = Path(path)
    if path.is_dir() or path.name == "config.yaml":
        folder = RunFolder.find(path)
        path = folder.best if folder.best.exists() else folder.last
    checkpoint = read_checkpoint(path)
    if "vitlab" not in checkpoint:
        raise UserError(f"{path} was not written by vitlab: it carries no configuration.")
    meta = checkpoint["vitlab"]
    config = meta["config"]
    check_targets(config)
    net = build_net(without_start(config))  # the weights are in the checkpoint
    prefix = "net."
    weights = checkpoint[RAW if raw and RAW in checkpoint else "state_dict"]
    state = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
    net.load_state_dict(state)
    return Classifier(net, meta).eval()
