"""The cluster that the tests in this folder run on: `make test-cluster`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.slurm import Slurm, why_not

FOLDER = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs a cluster, so that neither `make test` nor `make test-slow` runs it."""
    for item in items:
        if FOLDER in item.path.parents:
            item.add_marker(pytest.mark.cluster)


@pytest.fixture(scope="session")
def _slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    if reason := why_not():
        pytest.skip(reason)
    cluster = Slurm(tmp_path_factory.mktemp("slurm"))
    try:
        cluster.start()
        yield cluster
    except BaseException:
        print(cluster.logs())
        raise
    finally:
        cluster.stop()


@pytest.fixture
def slurm(_slurm: Slurm) -> Iterator[Slurm]:
    """A SLURM of two nodes, without jobs at the beginning and at the end of a test."""
    yield _slurm
    _slurm.call("scancel", "--user=root", check=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Show SLURM's logs with a test that fails."""
    report: Any = yield
    if report.failed and (cluster := getattr(item, "funcargs", {}).get("slurm")):
        report.sections.append(("SLURM's logs", cluster.logs()))
    return report
