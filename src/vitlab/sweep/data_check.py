"""The jobs of a sweep are held against their data, which is built once for all that share it."""

from collections.abc import Mapping, Sequence
from typing import Any

from vitlab.config.data_check import check_with_data
from vitlab.core.data_protocol import DatasetInfo
from vitlab.core.errors import UserError
from vitlab.data import datasets

# Options that say how images are read, not which there are: jobs that differ in these share a data set.
HOW_READ = ("batch_size", "in_memory", "num_workers")


def check_data(configs: Sequence[Mapping[str, Any]]) -> None:
    """Raise UserError for the first problem of `data_problems`."""
    for problem in data_problems(dict(enumerate(configs))).values():
        raise UserError(problem)


def data_problems(configs: Mapping[int, Mapping[str, Any]]) -> dict[int, str]:
    """Find, and where necessary download, the data of every job, and hold the rest of its config against it.

    Returns:
        For the numbers of those configs that cannot be trained, why.
    """
    describe = DataDescriptions()
    problems: dict[int, str] = {}
    for number, config in configs.items():
        try:
            check_with_data(config, describe(config["data"]))
        except UserError as error:
            problems[number] = str(error)
    return problems


class DataDescriptions:
    """What the data of configs turn out to be; those that several share are built once."""

    def __init__(self) -> None:
        # Without the data sets themselves: many of them, each with its images, fill the memory.
        self._found: dict[str, DatasetInfo | UserError] = {}

    def __call__(self, data: Mapping[str, Any]) -> DatasetInfo:
        """Return what the ``data`` section of a config means.

        Raises:
            UserError: as `datasets.build`; asked for once, as a download that fails takes its time.
        """
        key = repr(sorted((k, repr(v)) for k, v in data.items() if k not in HOW_READ))
        if key not in self._found:
            try:
                self._found[key] = datasets.describe(datasets.build(data), data["val_size"])
            except UserError as error:
                self._found[key] = error
        if isinstance(found := self._found[key], UserError):
            raise found
        return found
