"""The checks of a config that need its data: classes, the length of the run, the teacher's file."""

from collections.abc import Mapping
from typing import Any

from vitlab.config.plan import Plan, make_plan
from vitlab.config.teacher import teacher_file
from vitlab.core.errors import UserError


def check_with_data(config: Mapping[str, Any], name: str, num_classes: int, num_train: int) -> Plan:
    """Check a resolved config against its data.

    Args:
        config: resolved, plain values.
        name: of the data set.
        num_classes: that it has.
        num_train: images to train on.

    Returns:
        The plan of the run.

    Raises:
        UserError: a count does not fit, or a teacher's file is not there.
    """
    asked = config["model"]["num_classes"]
    if asked is not None and asked != num_classes:
        if config["data"].get("num_classes") == asked:
            raise UserError(
                f"data.num_classes={asked}, but {name} has {num_classes} classes: set data.num_classes="
                f"{num_classes}."
            )
        raise UserError(
            f"model.num_classes={asked}, but {name} has {num_classes} classes. Leave it out: it is found "
            "from the data."
        )
    if (batch_size := config["data"]["batch_size"]) > num_train:
        raise UserError(
            f"data.batch_size={batch_size} is more than the {num_train} training images of {name}: choose "
            f"{num_train} or fewer."
        )
    plan = make_plan(config, num_train)
    if "teacher" in config["task"]:
        teacher_file(config["task"])
    return plan
