"""From a resolved config to the objects of a run."""

import functools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import hydra
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from vitlab.config.data_check import check_with_data
from vitlab.config.plan import UNITS, Plan, duration_names
from vitlab.core import hardware
from vitlab.core.checkpoint import CheckpointMeta
from vitlab.core.errors import UserError
from vitlab.core.provenance import find_versions
from vitlab.core.seeding import derive_seed
from vitlab.data import datasets
from vitlab.data.datamodule import ImageData
from vitlab.data.image_folder import FileDataset
from vitlab.models.flops import flops_per_image
from vitlab.models.layers import pair
from vitlab.models.sharding import check_shardable
from vitlab.models.vit import ViT
from vitlab.models.wrapper import LibraryModel
from vitlab.optim import make_optimizer
from vitlab.optim.optimizers import FUSED_DEVICES
from vitlab.tasks.classify import Classify
from vitlab.training.instantiate import build_net, instantiate
from vitlab.training.teacher import Teacher, load_teacher

INITIAL_IMAGES = 1000  # that first weights are measured on: a million patches of CIFAR's


@dataclass(frozen=True)
class Components:
    """Everything that a run consists of, built from its config.

    Attributes:
        processes: that train it on this machine.
        kind: of the device: "cpu", "cuda" …
        flops: of a forward pass over one image.
        teacher: of ``task=distill``.
    """

    config: dict[str, Any]
    dataset: datasets.Dataset
    data: ImageData
    net: nn.Module
    task: Classify
    plan: Plan
    processes: int
    kind: str
    precision: str
    compiled: bool
    flops: int
    teacher: Teacher | None

    def compile(self) -> None:
        """Compile the networks in place, which leaves the keys of their states as they are."""
        self.net.compile(dynamic=False)
        if self.teacher:
            self.teacher.net.compile(dynamic=False)


def build(
    config: dict[str, Any], dataset: datasets.Dataset | None = None, plan: Plan | None = None
) -> Components:
    """Build data, network and task from a resolved config.

    Args:
        dataset: ``config["data"]``, where it has been built already.
        plan: where it has been made already, for this dataset.

    Raises:
        UserError: the data is missing or does not fit the config, or the hardware cannot do what is asked.
    """
    trainer = config["trainer"]
    kind = hardware.resolve_device_type(trainer["accelerator"])
    processes = hardware.count_processes(trainer["devices"], kind)
    precision = hardware.resolve_precision(trainer["precision"], kind)
    dataset = dataset or datasets.build(config["data"])
    config = config | {"model": config["model"] | {"num_classes": len(dataset.classes)}}
    data = build_data(config, dataset, kind, processes)
    if config["data"]["batch_size"] % processes:
        raise UserError(
            f"data.batch_size={config['data']['batch_size']} is global and does not divide by {processes} "
            f"processes. Use a multiple of {processes}."
        )
    plan = plan or check_with_data(config, datasets.describe(dataset, config["data"]["val_size"]))
    torch.manual_seed(derive_seed(config["seed"], "weights"))
    net = build_net(config)
    try:
        flops = flops_per_image(net, data.input_size, config["model"]["channels"])
    except (RuntimeError, ValueError) as error:
        if not isinstance(net, LibraryModel):  # what a library's network asks of its images, it alone knows
            raise
        height, width = data.input_size
        reason = str(error).partition("\n")[0].rstrip(".")
        raise UserError(
            f"model.image_size={height}x{width}: the network cannot take images of this size: {reason}. "
            "Choose another model.image_size."
        ) from error
    sharded = trainer["strategy"] == "fsdp"
    if sharded:
        check_shardable(net)
    teacher = load_teacher(config, dataset) if "teacher" in config["task"] else None
    asked = teacher.record["flops_per_image"] if teacher else 0
    whole = plan.training_flops(flops, asked)
    compiled = hardware.resolve_compile(config["compile"], kind, whole / processes)
    data.setup("fit")  # decodes; whatever can be refused has been by now
    if isinstance(net, ViT) and not hasattr(net, "loaded"):
        net.data_dependent_init(_draw_initial(data))
    meta: CheckpointMeta = {
        "config": config,
        "classes": list(dataset.classes),
        "mean": list(data.mean),
        "std": list(data.std),
        "input_size": list(data.input_size),
        "precision": precision,
        "compiled": compiled,
        "versions": find_versions(),
    }
    if isinstance(dataset, FileDataset):
        meta["images"] = dataset.fingerprint()
    if teacher:
        teacher.undo(mean=data.mean, std=data.std)
        meta["teacher"] = teacher.record
    # What names the teacher has become the teacher. A partial, and then a call: instantiate would wrap plain
    # dictionaries in its own types.
    node = {key: value for key, value in config["task"].items() if not key.startswith("teacher")}
    task = instantiate(node, _partial_=True)(
        net=net,
        optimizer=optimizer_factory(config["optimizer"], precision, kind, sharded=sharded),
        schedule=_schedule(config["scheduler"], plan),
        total_steps=plan.total_steps,
        num_classes=len(dataset.classes),
        seed=config["seed"],
        meta=meta,
        **({"teacher": teacher} if teacher else {}),
    )
    return Components(
        config, dataset, data, net, task, plan, processes, kind, precision, compiled, flops, teacher
    )


def _draw_initial(data: ImageData) -> Iterator[Tensor]:
    """Yield some training images as the network sees them, without augmentation, in batches on the CPU."""
    for images in data.train_images(INITIAL_IMAGES)[0].split(64):
        yield data.preprocess(images.cpu())  # (B, C, H, W)


def build_data(config: dict[str, Any], dataset: datasets.Dataset, kind: str, processes: int) -> ImageData:
    """Build the data module of a run, its augmentation included."""
    options = config["data"]
    device = torch.device(kind if kind in ("cuda", "mps") else "cpu")
    if kind == "cuda":  # the one that this process will train on, before there is a Trainer to ask
        rank = int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", 0)))
        devices = config["trainer"]["devices"]
        device = torch.device(kind, devices[rank] if isinstance(devices, list) else rank)
    return ImageData(
        dataset=dataset,
        augment=instantiate(config["augment"], _convert_="all"),
        batch_size=options["batch_size"],
        val_size=options["val_size"],
        split_seed=options["split_seed"],
        normalization=options["normalization"],
        input_size=pair("model.image_size", config["model"]["image_size"]),
        seed=config["seed"],
        num_classes=len(dataset.classes),
        in_memory=options.get("in_memory", "auto"),  # absent from runs older than the choice
        num_workers=options["num_workers"],
        device=device,
        processes=processes,
    )


def optimizer_factory(
    node: dict[str, Any], precision: str, kind: str, *, sharded: bool = False
) -> Callable[[nn.Module], Optimizer]:
    """Return what builds a network's optimizer, its parameters grouped, from the ``optimizer`` node.

    Args:
        precision: resolved, as `Components` has it.
        kind: of the device that will train; the parameters may still be on the CPU.
        sharded: whether parameters will be in pieces, for which torch has no fused SGD.
    """
    options = {key: value for key, value in node.items() if not key.startswith("_")}
    if (sharded or precision == "16-mixed") and "fused" in options:
        # A fused step unscales by itself, after gradient clipping would need it done; and torch's fused SGD
        # begins with whatever was in the memory of its momentum where the very first step overflows.
        options["fused"] = False
    elif options.get("fused") == "auto":
        options["fused"] = kind in FUSED_DEVICES
    return functools.partial(
        make_optimizer,
        kind=instantiate({"_target_": node["_target_"], "_partial_": True}).func,
        layer_decay=options.pop("layer_decay", 1.0),  # absent where a YAML names one of torch's
        lr=options.pop("lr"),
        weight_decay=options.pop("weight_decay"),
        options=options,
    )


def _schedule(scheduler: dict[str, Any], plan: Plan) -> Any:
    # The three units of a duration have become one number of steps in the plan.
    stated = tuple(f"{name}_{unit}" for name in duration_names(scheduler) for unit in UNITS)
    options = {k: v for k, v in scheduler.items() if k not in stated and not k.startswith("_")}
    # Hydra's own partial looks its target up again at every call, and this is called twice a step.
    return functools.partial(hydra.utils.get_method(scheduler["_target_"]), **options, **plan.durations)
