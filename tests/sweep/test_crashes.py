"""A sweep is killed before something that it writes; the same command then comes to what a whole one does.

The jobs are programs of a few lines that write what a run writes, but for the last test's, which train.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest
import sqlalchemy

from tests.chaos_sweeps import rampage
from tests.conftest import slow
from tests.sweep.helpers import PLAIN, RATE
from vitlab.config.arguments import parse_arguments
from vitlab.core.run_folder import RunFolder
from vitlab.sweep import run_sweep, search, study, worker

# Notes the start of a job, and ends it at once, unless it has ended before; one that is to test has a result.
JOB = """
grep -q finished $1/summary.json && exit
basename $1 >> starts
test=$(grep -q "limit_test_batches: 0" $1/config.yaml || echo ', "test/accuracy": 0.5')
echo '{"status": "finished", "seed": 0, "train": {}, "metrics": {"val/accuracy": 0.5'$test'}}' > $1/new
mv $1/new $1/summary.json
"""
GRID = ["-m", *PLAIN[1:], "seed=1,2", "hydra.sweep.dir=s"]
TRIALS = ["sweep.trials=2", "sweep.random_trials=1", "sweep.pruner=none"]
SEARCH = ["-m", *PLAIN, RATE, "model.depth=1,2", *TRIALS, "hydra.sweep.dir=s"]
# What Python says before it writes, and which of the arguments is the path.
WRITES = {"os.rename": 1, "os.link": 1, "os.mkdir": 0, "os.remove": 0, "open": 0}


def call(typed: list[str], write: str = "", number: int = -1) -> tuple[int, list[str]]:
    """Run the command in a process of its own, which is killed before the n-th write of a kind.

    Returns:
        Its exit status, and what it wrote: event and path, or ``commit`` for the record of a search.
    """
    reader, writer = os.pipe()
    if not (pid := os.fork()):
        os.close(reader)
        _run(typed, write, number, writer)
    os.close(writer)
    with open(reader) as pipe:
        writes = pipe.read().splitlines()  # until its jobs have ended too
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), writes


def _run(typed: list[str], write: str, number: int, writer: int) -> NoReturn:
    left, inside = number, os.path.join(os.getcwd(), "s")

    def note(what: str) -> None:
        nonlocal left
        if what.startswith(write):
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
        os.write(writer, f"{what}\n".encode())

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in WRITES or (event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        path = arguments[WRITES[event]]
        if not isinstance(path, int) and (path := os.path.abspath(os.fsdecode(path))).startswith(inside):
            note(f"{event} {path.removeprefix(inside)}")

    def start(folder: RunFolder, *, shown: bool = True, **env: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(["sh", "-c", JOB, "sh", folder.path], pass_fds=[writer])

    code = 1
    try:
        worker.start = start
        worker.POLL = search.POLL = 0.01
        study.Study.draw = lambda self: None
        sys.addaudithook(hear)
        sqlalchemy.event.listen(sqlalchemy.Engine, "commit", lambda connection: note("commit"))
        run_sweep(parse_arguments(typed), lambda folder: None)
        code = 0
    finally:
        os._exit(code)  # whatever is raised: this is no process of pytest's


def read() -> tuple[list[tuple[str, ...]], list[str]]:
    """Return label, state and folder of each job, and the starts of jobs."""
    jobs = json.loads(Path("s/sweep.json").read_text())["jobs"]
    return [(job["label"], job["state"], job["folder"]) for job in jobs], Path("starts").read_text().split()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the commands come to that nobody kills."""
    found = {}
    for name, typed in (("grid", GRID), ("search", SEARCH)):
        with contextlib.chdir(tmp_path_factory.mktemp(name)):
            assert call(typed)[0] == 0
            found[name] = read()
    return found


@pytest.mark.parametrize(
    ("kind", "write", "number"),
    [
        ("grid", "os.link /seed-2/config.yaml", 0),  # one job has a folder, the other has not
        ("grid", "os.rename /sweep.json", 1),  # all have ended, and the record has not heard of it
        ("search", "open /000", 0),  # a trial is drawn, and has no folder
        *(slow("grid", "", number) for number in range(0, 43, 14)),
        *(slow("search", "", number) for number in range(3, 95, 24)),
    ],
)
def test_a_sweep_that_was_killed_at_a_write_is_whole_in_the_end(
    kind: str, write: str, number: int, tmp_path: Path, whole: dict[str, Any]
) -> None:
    typed = {"grid": GRID, "search": SEARCH}[kind]
    with contextlib.chdir(tmp_path):
        assert call(typed, write, number)[0] == -signal.SIGKILL
        assert call(typed)[0] == 0
        assert read() == whole[kind]
    assert {path.parent.name for path in tmp_path.glob("s/*/config.yaml")} == {*whole[kind][1]}


@pytest.mark.slow
def test_a_search_that_was_killed_at_random_trains_each_trial_once_to_the_same_weights(
    tmp_path: Path,
) -> None:
    rows = list(rampage(2, seed=0, work=tmp_path, kinds=["search"]))
    assert sum(row["kills"] for row in rows) == 2
    assert not [row for row in rows if row["wrong"]]
