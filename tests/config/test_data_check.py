"""What only the data reveals is held against the config before a run folder exists."""

from typing import Any

import pytest

from tests.config.helpers import changed
from vitlab.config.data_check import check_with_data
from vitlab.core.data_protocol import DatasetInfo
from vitlab.core.errors import UserError

PETS = DatasetInfo("pets", ("cat", "dog", "eel"), num_train=500, num_val=50, num_test=50)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"data.num_classes": 7, "model.num_classes": 7}, "data.num_classes=7, but pets has 3 classes: set"),
        ({"model.num_classes": 7, "data.num_classes": None}, "model.num_classes=7, but pets has 3 classes"),
        ({"data.batch_size": 501}, "data.batch_size=501 is more than the 500 training images of pets"),
    ],
)
def test_a_count_that_does_not_fit_the_data_is_refused(
    default: dict[str, Any], values: dict[str, Any], said: str
) -> None:
    config = changed(default, {"model.num_classes": None, "data.num_classes": None} | values)
    with pytest.raises(UserError, match=said):
        check_with_data(config, PETS)


def test_what_fits_gives_the_plan_of_the_run(default: dict[str, Any]) -> None:
    values = {"model.num_classes": None, "data.num_classes": None, "data.batch_size": 50}
    assert check_with_data(changed(default, values), PETS).batches_per_epoch == 10
