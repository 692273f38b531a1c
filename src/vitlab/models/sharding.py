"""A network in pieces, one on each device: fully sharded data parallel (``trainer.strategy=fsdp``).

Source: "PyTorch FSDP" (Zhao et al. 2023), in torch's second form, ``torch.distributed.fsdp.fully_shard``.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.modules.batchnorm import _BatchNorm

from vitlab.core.errors import UserError
from vitlab.models.attention_weights import token_layout


def check_shardable(net: nn.Module) -> None:
    """Check that ``net`` has blocks to share out, and nothing that has to be kept alike on all devices.

    Raises:
        UserError: it has none, or has.
    """
    layout, instead = token_layout(net), "trainer.strategy=ddp keeps the whole network on each device."
    if layout is None:
        raise UserError(f"trainer.strategy=fsdp shares out the blocks of a ViT, and this has none; {instead}")
    if any(isinstance(module, _BatchNorm) for module in net.modules()):
        raise UserError(
            "trainer.strategy=fsdp does not keep the statistics of BatchNorm alike on all devices. Choose "
            f"another norm (model.tokenizer.norm, where there is one), or another model; {instead}"
        )


def shard(net: nn.Module, mesh: DeviceMesh) -> None:
    """Leave of every parameter of ``net`` a piece on each device of ``mesh``, in place.

    A block is put together on all devices while it computes, and one after the other. The parameters are new
    objects afterwards, so that an optimizer has to be built anew.
    """
    layout = token_layout(net)
    assert layout is not None
    net.to(memory_format=torch.contiguous_format)  # no other kernels can be cut in pieces (torch 2.15)
    for block in layout.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(net, mesh=mesh)


def is_sharded(net: nn.Module) -> bool:
    """Say whether `shard` has been here."""
    return isinstance(net, FSDPModule)


def gather(net: nn.Module) -> None:
    """Put a sharded network together on every device, so that each can use it alone; nothing for others.

    To be called on all devices.
    """
    for module in net.modules():
        if isinstance(module, FSDPModule):
            module.set_reshard_after_forward(False, recurse=False)
            module.unshard()


def load_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Fill ``module`` with whole weights by name, which it may have in pieces."""
    set_model_state_dict(module, dict(weights), options=StateDictOptions(full_state_dict=True))
