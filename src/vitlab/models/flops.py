"""What a model costs: parameters and floating point operations."""

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vitlab.models.layers import Size, pair


def count_parameters(model: nn.Module) -> int:
    """Count the numbers in all parameters, frozen ones too; a shared parameter counts once."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_trainable(model: nn.Module) -> int:
    """Count the numbers in the parameters that are not frozen."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def flops_per_image(model: nn.Module, image_size: Size, channels: int) -> int:
    """Count the floating point operations of one image's forward pass; a multiply-add is 2.

    Counts matrix products and convolutions, attention's included; leaves out norms, activations and
    additions. Afterwards the model is as it was: train or eval mode of each module, statistics, gradients.
    """
    modes = [(module, module.training) for module in model.modules()]
    image = next(model.parameters()).new_zeros(1, channels, *pair("image_size", image_size))  # (1, C, H, W)
    try:
        model.eval()
        # MATH computes attention as two plain matrix products, so that the count does not depend on which
        # fused kernels this version of the counter knows.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model.forward(image)  # not the compiled version, if there is one
    finally:
        for module, training in modes:
            module.training = training
    return counter.get_total_flops()


def show_flops(count: int) -> str:
    """Return ``"2.43 GFLOPs"`` or ``"62.3 MFLOPs"``."""
    return f"{count / 1e9:,.3g} GFLOPs" if count >= 1e9 else f"{count / 1e6:,.3g} MFLOPs"
