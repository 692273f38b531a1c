"""From a resolved config to the objects of a run."""

import functools
from dataclasses import dataclass
from typing import Any

import hydra
import torch
from torch import nn

from vitlab import hardware
from vitlab.data import sources
from vitlab.data.datamodule import ImageData
from vitlab.errors import UserError
from vitlab.models.cost import flops_per_image
from vitlab.plan import Plan, make_plan
from vitlab.seeding import derive
from vitlab.tasks.classify import Classify


@dataclass(frozen=True)
class Job:
    """Everything that a run consists of, built from its config."""

    config: dict[str, Any]
    source: sources.Source
    data: ImageData
    net: nn.Module
    task: Classify
    plan: Plan
    kind: str  # of the device: "cpu", "cuda" …
    precision: str
    compiled: bool
    flops: int  # forward, one image


def build(config: dict[str, Any], processes: int = 1) -> Job:
    """Build data, network and task from a resolved config.

    Raises:
        UserError: the data is missing or does not fit the config, or the hardware cannot do what is asked.
    """
    trainer = config["trainer"]
    kind = hardware.device_type(trainer["accelerator"])
    precision = hardware.precision(trainer["precision"], kind)
    source = sources.build(config["data"])
    config = config | {"model": config["model"] | {"num_classes": len(source.classes)}}
    data = build_data(config, source)
    data.setup("fit")
    if config["data"]["batch_size"] % processes:
        raise UserError(
            f"data.batch_size={config['data']['batch_size']} is global and does not divide by {processes} "
            f"processes. Use a multiple of {processes}."
        )
    plan = make_plan(config, data.num_train)
    torch.manual_seed(derive(config["seed"], "weights"))
    net = build_net(config)
    size = pair(config["model"]["image_size"])
    flops = flops_per_image(net, size, config["model"]["channels"])
    seen = 3 * flops * plan.total_steps * plan.effective_batch  # backward costs two forwards
    compiled = hardware.compiles(config["compile"], kind, seen / processes)
    optimizer = hydra.utils.instantiate(config["optimizer"], _convert_="all")
    if precision == "16-mixed":
        # A fused step unscales by itself, after gradient clipping would need it done.
        optimizer = functools.partial(optimizer, fused=False)
    # A partial, and then a call: instantiate would wrap plain dictionaries in its own types.
    task = hydra.utils.instantiate(config["task"], _partial_=True)(
        net=net,
        optimizer=optimizer,
        schedule=_schedule(config["scheduler"], plan),
        total_steps=plan.total_steps,
        num_classes=len(source.classes),
        seed=config["seed"],
        meta={
            "config": config,
            "classes": list(source.classes),
            "mean": list(data.mean),
            "std": list(data.std),
            "input_size": list(size),
        },
    )
    return Job(config, source, data, net, task, plan, kind, precision, compiled, flops)


def build_net(config: dict[str, Any]) -> nn.Module:
    return hydra.utils.instantiate(config["model"], _convert_="all")


def build_data(config: dict[str, Any], source: sources.Source) -> ImageData:
    options = config["data"]
    return ImageData(
        source=source,
        augment=hydra.utils.instantiate(config["augment"], _convert_="all"),
        batch_size=options["batch_size"],
        val_size=options["val_size"],
        split_seed=options["split_seed"],
        normalization=options["normalization"],
        input_size=pair(config["model"]["image_size"]),
        seed=config["seed"],
        num_classes=len(source.classes),
    )


def _schedule(scheduler: dict[str, Any], plan: Plan) -> Any:
    # The three ways to state a warmup have become one number of steps in the plan.
    options = {k: v for k, v in scheduler.items() if not k.startswith("warmup_")}
    if len(options) < len(scheduler):
        options["warmup_steps"] = plan.warmup_steps
    return hydra.utils.instantiate(options)


def pair(size: int | list[int]) -> tuple[int, int]:
    """Return (height, width) of a size given as one number or two."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])
