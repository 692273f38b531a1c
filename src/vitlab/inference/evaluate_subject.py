"""What is to be evaluated: a trained network, and images that fit it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vitlab.core.checkpoint import CheckpointMeta
from vitlab.core.errors import UserError
from vitlab.data import datasets
from vitlab.data.datamodule import ImageData
from vitlab.inference.evaluate_arguments import Run, compose_data, is_other_data, own_data
from vitlab.inference.load import load
from vitlab.inference.relabel import Pooled, with_classes
from vitlab.training.evaluation import restore_data


@dataclass(frozen=True)
class Request:
    """What is to be evaluated, and how.

    Attributes:
        overrides: that make other data of the runs' own.
        part: ``test``, ``val``, ``train`` or ``all``.
        raw: of a run with ``callbacks.ema``, take the weights as the optimizer left them.
        flip: also average every image's probabilities with its mirror image's.
        corruptions, audit: do these too.
        out: the folder for the comparison of several runs.
        command: as typed, for the record.
    """

    runs: Sequence[Run]
    overrides: Sequence[str]
    part: str
    raw: bool
    flip: bool
    corruptions: bool
    audit: bool
    out: Path
    command: str


@dataclass(frozen=True)
class Subject:
    """A trained network, and the images that it is evaluated on.

    Attributes:
        meta: of its checkpoint.
        data: what is evaluated.
        part: of them.
        section: of the config, that names ``data``.
        own: the data that it was trained on, or why they cannot be had.
    """

    net: torch.nn.Module
    meta: CheckpointMeta
    data: ImageData
    part: str
    section: Mapping[str, Any]
    own: ImageData | UserError


def prepare(run: Run, request: Request) -> Subject:
    """Load a run's network, and build the data that it is to be evaluated on.

    Raises:
        UserError: they are not there, or do not fit the network.
    """
    classifier = load(run.checkpoint, raw=request.raw)
    config, meta = classifier.config, classifier.meta
    section = compose_data(config, request.overrides)
    # A run's limit belongs to its own test; of other images, and of a run that tested none, all are taken.
    whole = is_other_data(config, section) or request.part == "all"
    if whole or config["trainer"]["limit_test_batches"] == 0:
        trainer = config["trainer"] | {"limit_test_batches": 1.0}
        meta = meta | {"config": config | {"trainer": trainer}}
    try:
        data = restore(meta, section, pooled=request.part == "all")
    except UserError as error:
        moved = " If the images of this run have moved, say where they are: data.root=…"
        raise UserError(f"{error}{'' if request.overrides else moved}") from error
    if request.part == "val" and not data.num_val:
        raise UserError("--split val: no images are held out (data.val_size=0).")
    trained_on = own_data(config, section)
    own: ImageData | UserError = data
    if trained_on != section:
        try:
            own = restore(meta, trained_on)
        except UserError as error:
            own = error
    if request.audit and isinstance(own, UserError):
        raise UserError(f"--audit needs the images that the run was trained on: {own}")
    part = "test" if request.part == "all" else request.part
    return Subject(classifier.net, meta, data, part, section, own)


def restore(meta: CheckpointMeta, section: Mapping[str, Any], *, pooled: bool = False) -> ImageData:
    """Return the data that a section of a config names, with the network's classes and normalisation.

    Args:
        pooled: whether all of them are test images.
    """
    dataset = with_classes(datasets.build(section), meta["classes"])
    dataset = Pooled(dataset) if pooled else dataset
    return restore_data(meta | {"config": meta["config"] | {"data": section}}, dataset)
