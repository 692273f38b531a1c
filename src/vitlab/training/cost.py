"""What a run will cost, before it is built."""

from collections.abc import Mapping
from typing import Any

import torch

from vitlab.core import hardware
from vitlab.models.flops import flops_per_image
from vitlab.models.layers import pair
from vitlab.training.instantiate import build_net, without_initial_weights


def measure_forward(config: Mapping[str, Any], num_classes: int) -> tuple[int, str]:
    """Return the FLOPs of one image's forward pass through the network of a config, and the device's name.

    The network is built without memory for its weights.

    Raises:
        UserError: it cannot be built as configured, or there is no such device.
    """
    config = without_initial_weights(dict(config))
    node = config["model"] | {"num_classes": num_classes}
    with torch.device("meta"):
        forward = flops_per_image(
            build_net({"model": node}), pair("model.image_size", node["image_size"]), node["channels"]
        )
    kind = hardware.resolve_device_type(config["trainer"]["accelerator"])
    return forward, hardware.describe_device(kind)
