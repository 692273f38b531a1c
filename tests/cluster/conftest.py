"""The cluster that the tests in this folder run on: `make test-cluster`."""

import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import database as databases
from tests.cluster import machines as pair
from tests.cluster.database import Database
from tests.cluster.machines import Machines
from tests.cluster.slurm import LONG, Slurm, why_not
from tests.conftest import ROOT, verb

FOLDER = Path(__file__).parent
PAGE = ROOT / "docs" / "cluster.md"


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


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    """Two machines with a cable between them."""
    if reason := pair.why_not():
        pytest.skip(reason)
    (tmp_path / "machines").mkdir()
    both = Machines(tmp_path / "machines")
    try:
        try:
            both.connect()
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces here: {error.stderr.decode().strip()}")
        yield both
    finally:
        both.disconnect()


@pytest.fixture
def database(machines: Machines) -> Iterator[Database]:
    """A PostgreSQL on the left machine."""
    if reason := databases.why_not():
        pytest.skip(reason)
    server = Database(machines)
    try:
        server.start()
        yield server
    except BaseException:
        print(server.logs())
        raise
    finally:
        server.stop()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Show the logs of what a test that fails ran on."""
    report: Any = yield
    for name in ("slurm", "machines", "database"):
        if report.failed and (used := getattr(item, "funcargs", {}).get(name)):
            report.sections.append((f"the logs of {name}", used.logs()))
    return report


@pytest.fixture(scope="session")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Write the page's scripts to files, and return one by its name."""
    folder = tmp_path_factory.mktemp("scripts")
    for script in re.findall(r"```bash\n(#!/bin/bash\n.*?)```", PAGE.read_text(), re.S):
        name = re.search(r"^# (\w+\.sh): ", script, re.M)
        assert name, "a script says its name in its second line"
        # Where it puts runs is the only line that a test changes.
        (folder / name[1]).write_text(re.sub(r"outputs(/slurm)?/", f"{folder}/", script))
    return lambda name: folder / name


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of LONG that nothing happens to, without SLURM."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    assert verb(*LONG, f"hydra.run.dir={folder}", OMP_NUM_THREADS="1").returncode == 0
    return folder
