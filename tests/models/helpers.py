"""Networks for tests as a config describes them: a key that is added to the YAML needs no edit here."""

from functools import cache
from typing import Any

import torch
from torch import nn

from vitlab.config import compose, to_plain
from vitlab.construct import build_net

SMALL: dict[str, Any] = {
    "image_size": 16,
    "dim": 32,
    "depth": 2,
    "heads": 2,
    "mlp_ratio": 2.0,
    "pool": "cls",
}


@cache
def model_node(*overrides: str) -> dict[str, Any]:
    """Return ``cfg.model`` under Hydra overrides, resolved; do not change it."""
    return to_plain(compose(overrides))["model"]


def build(*overrides: str, **changes: Any) -> nn.Module:
    """Build the network of a config, with ``changes`` in its node."""
    torch.manual_seed(0)
    return build_net({"model": {**model_node(*overrides), **changes}})


def small_vit(*overrides: str, **changes: Any) -> Any:
    """Build a ViT of two blocks on images of 16x16; ``overrides`` such as "model/tokenizer=cct"."""
    return build("model=vit_tiny", *overrides, **{**SMALL, **changes})
