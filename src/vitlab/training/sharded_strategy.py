"""Lightning's strategy for ``trainer.strategy=fsdp``, with the checkpoints of every other one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer

from vitlab.models.sharding import load_weights


class ShardedStrategy(ModelParallelStrategy):
    """Train with a piece of the network on each of ``devices`` devices, see `vitlab.models.sharding`.

    A checkpoint is one file with whole tensors. Lightning numbers an optimizer's state by the order of the
    network's parameters, and torch's optimizers by that of their groups: here it is theirs, so that a run
    can go on with another number of devices, or with a single one.
    """

    def __init__(self, devices: int) -> None:
        super().__init__(devices, tensor_parallel_size=1, save_distributed_checkpoint=False)

    def _module(self) -> nn.Module:
        assert self.model is not None
        return self.model

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return the whole state of the optimizer on rank 0, and nothing on the others."""
        if isinstance(optimizer, LightningOptimizer):
            optimizer = optimizer.optimizer
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state: dict[str, Any] = {"state": {}, "param_groups": []}
        state |= get_optimizer_state_dict(self._module(), optimizer, options=options)
        names = [name for group in state["param_groups"] for name in group["params"]]
        return _rename(state, {name: number for number, name in enumerate(names)})

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Fill network and optimizer from the file, and return what else it holds."""
        checkpoint: dict[str, Any] = self.checkpoint_io.load_checkpoint(Path(checkpoint_path))
        module = self._module()
        load_weights(module, checkpoint.pop("state_dict"))
        names = {parameter: name for name, parameter in module.named_parameters()}
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=False):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            kernels = [{"fused": group["fused"]} for group in optimizer.param_groups if "fused" in group]
            set_optimizer_state_dict(
                module,
                optimizer,
                _rename(state, {number: names[p] for number, p in enumerate(parameters)}),
                options=StateDictOptions(full_state_dict=True),
            )
            for group, own in zip(optimizer.param_groups, kernels, strict=False):
                group |= own  # what a whole network was trained with may not be there for pieces
        return checkpoint


def _rename(state: Mapping[str, Any], names: Mapping[Any, Any]) -> dict[str, Any]:
    """Return an optimizer's state with its parameters called otherwise."""
    return {
        "state": {names[old]: value for old, value in state["state"].items()},
        "param_groups": [
            group | {"params": [names[old] for old in group["params"]]} for group in state["param_groups"]
        ],
    }
