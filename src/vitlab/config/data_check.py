"""The checks of a config that need its data: classes, the length of the run, the teacher's file."""

import math
from collections.abc import Mapping
from typing import Any

from vitlab.config.plan import Plan, make_plan
from vitlab.config.teacher import teacher_file
from vitlab.core.data_protocol import DatasetInfo
from vitlab.core.errors import UserError


def check_with_data(config: Mapping[str, Any], data: DatasetInfo) -> Plan:
    """Check a resolved config against its data.

    Args:
        config: resolved, plain values.
        data: what they turned out to be.

    Returns:
        The plan of the run.

    Raises:
        UserError: a count does not fit, or a teacher's file is not there.
    """
    num_classes = len(data.classes)
    for group, advice in (
        ("data", f"set data.num_classes={num_classes}"),
        ("model", "leave it out, it is found from the data"),
    ):
        if (asked := config[group].get("num_classes")) not in (None, num_classes):
            raise UserError(
                f"{group}.num_classes={asked}, but {data.name} has {num_classes} classes: {advice}."
            )
    if (batch_size := config["data"]["batch_size"]) > data.num_train:
        raise UserError(
            f"data.batch_size={batch_size} is more than the {data.num_train} training images of {data.name}: "
            f"choose {data.num_train} or fewer."
        )
    plan = make_plan(config, data.num_train)
    _check_evaluation(config["trainer"], data, plan)
    if "teacher" in config["task"]:
        teacher_file(config["task"])
    return plan


def _check_evaluation(trainer: Mapping[str, Any], data: DatasetInfo, plan: Plan) -> None:
    """Refuse now what Lightning would refuse in the middle of a run, or after it."""
    for split, images in (("val", data.num_val), ("test", data.num_test)):
        limit = trainer[f"limit_{split}_batches"]
        batches = math.ceil(images / plan.batch_size)
        if isinstance(limit, float) and limit and batches and int(batches * limit) == 0:
            raise UserError(
                f"trainer.limit_{split}_batches={limit} of {batches} batches is none. Give at least "
                f"{1 / batches:.3g}, a number of batches, or 0 for none."
            )
    every, through_epochs = trainer["val_check_interval"], trainer["check_val_every_n_epoch"] is None
    if through_epochs and not isinstance(every, int):
        raise UserError(
            "trainer.check_val_every_n_epoch=null validates every so many batches: give the number as "
            "trainer.val_check_interval."
        )
    if isinstance(every, int) and every > plan.batches_per_epoch and not through_epochs:
        raise UserError(
            f"trainer.val_check_interval={every} is more than the {plan.batches_per_epoch} batches of an "
            "epoch. Lower it, or set trainer.check_val_every_n_epoch=null to count through the epochs."
        )
