"""From a node of the config to the object that it describes."""

from typing import Any

import hydra
from hydra.errors import InstantiationException
from torch import nn

from vitlab.errors import UserError


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
    return instantiate(config["model"], _convert_="all")
