"""From a node of the config, or from a checkpoint, to the object that it describes."""

from pathlib import Path
from typing import Any

import hydra
from hydra.errors import InstantiationException
from torch import nn

from vitlab.config import check_record, keys
from vitlab.core.checkpoint import RAW, CheckpointMeta, check_fits, check_meta, read_checkpoint
from vitlab.core.errors import UserError


def instantiate(node: dict[str, Any], **options: Any) -> Any:
    """Build what a config node describes, with options of `hydra.utils.instantiate` or further arguments.

    Raises:
        UserError: its constructor refuses the values.
    """
    # Hydra would look up what they refer to, the environment among it. A run's config has been resolved.
    if references := [key for key, value in keys.leaves(node) if isinstance(value, str) and "${" in value]:
        raise UserError(
            f"{node['_target_']} cannot be built: {', '.join(references)} refers to other values."
        )
    try:
        return hydra.utils.instantiate(node, **options)
    except InstantiationException as error:
        cause: BaseException = error
        # Down to what our own code says; below that is only what made it say so.
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
        from vitlab.models.initial_weights import load_initial_weights  # timm: half a second for most uses

        net.loaded = load_initial_weights(net, Path(path).expanduser())
    return net


def without_initial_weights(config: dict[str, Any]) -> dict[str, Any]:
    """Return a config whose network is built without the weights that it once started from."""
    initial = {"pretrained": False, "checkpoint_path": None}
    model = config["model"]
    return config | {"model": model | {key: value for key, value in initial.items() if key in model}}


def load_net(path: Path, *, raw: bool = False, digest: str | None = None) -> tuple[nn.Module, CheckpointMeta]:
    """Return the trained network of a checkpoint file, and what the file says of it.

    On the CPU and in eval mode. Reading a checkpoint runs no code that it names: only plain types are
    read, and the classes it may build are vitlab's own.

    Args:
        raw: of a run with ``callbacks.ema``, take the weights as the optimizer left them, not their average.
        digest: the file's SHA-256, where that is known already.

    Raises:
        UserError: there is no checkpoint there, it is damaged, or it is not one of vitlab's.
    """
    checkpoint = read_own(path, digest)
    meta: CheckpointMeta = checkpoint["vitlab"]
    net = build_net(without_initial_weights(meta["config"]))  # the weights are in the checkpoint
    given = checkpoint[RAW if raw and RAW in checkpoint else "state_dict"]
    weights = {k.removeprefix("net."): v for k, v in given.items() if k.startswith("net.")}
    check_fits(net, weights, path)
    net.load_state_dict(weights)
    return net.eval(), meta


def read_own(path: Path, digest: str | None = None) -> dict[str, Any]:
    """Read a checkpoint of one of our runs, with what it says of itself checked; see `read_checkpoint`.

    Raises:
        UserError: it cannot be read, is not one of vitlab's, or says what cannot be.
    """
    checkpoint = read_checkpoint(path, digest)
    if "vitlab" not in checkpoint:
        raise UserError(f"{path} was not written by vitlab: it carries no configuration.")
    check_meta(meta := checkpoint["vitlab"], path)
    meta["config"] = config = check_record(meta["config"], path)
    for what, own, number in (
        ("classes", meta["classes"], config["model"].get("num_classes")),
        ("mean", meta["mean"], config["data"]["channels"]),
    ):
        if len(own) != number:
            raise UserError(f"{path} cannot be used: its config says {number} {what}, and it has {len(own)}.")
    return checkpoint
