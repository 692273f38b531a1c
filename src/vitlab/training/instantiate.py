"""From a node of the config to the object that it describes."""

from pathlib import Path
from typing import Any

import hydra
from hydra.errors import InstantiationException
from torch import nn

from vitlab.core.errors import UserError


def instantiate(node: dict[str, Any], **options: Any) -> Any:
    """Build what a config node describes.

    Raises:
        UserError: its constructor refuses the values.
    """
    try:
        return hydra.utils.instantiate(node, **options)
    except InstantiationException as error:
        cause: BaseException = error
        # Down to what our own code says; below that lies only what it said it of.
        while cause.__cause__ is not None and not isinstance(cause, UserError):
            cause = cause.__cause__
        if isinstance(cause, UserError):
            raise cause from None
        raise UserError(f"{node['_target_']} cannot be built as configured: {cause}") from error


def build_net(config: dict[str, Any]) -> nn.Module:
    """Build the network of a config, with the weights that it starts from.

    Raises:
        UserError: it cannot be built as configured, or there are no such weights.
    """
    node = dict(config["model"])
    # The networks of other libraries have weights to fetch as well, and take both into their constructors.
    path = node.pop("checkpoint_path", None) if "pretrained" not in node else None
    net = instantiate(node, _convert_="all")
    if path:
        from vitlab.models.initial_weights import start_from  # timm, half a second that most uses can save

        net.loaded = start_from(net, Path(path).expanduser())
    return net


def without_start(config: dict[str, Any]) -> dict[str, Any]:
    """Return a config whose network is built without the weights that it once started from."""
    start = {"pretrained": False, "checkpoint_path": None}
    model = config["model"]
    return config | {"model": model | {key: value for key, value in start.items() if key in model}}
