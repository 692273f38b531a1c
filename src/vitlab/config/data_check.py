"""The checks of a config that need its data: classes, the length of the run, the teacher's file."""

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
    if "teacher" in config["task"]:
        teacher_file(config["task"])
    return plan
