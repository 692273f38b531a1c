"""Several processes on one sweep, here or on other machines: each job is run by one of them, none is lost."""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.compare.folders import make_run
from tests.conftest import ROOT, wait_for
from tests.core.claims import kill, take
from tests.sweep.helpers import SHORT, Calls, states
from vitlab.core import claim
from vitlab.core.files import try_lock
from vitlab.core.run_folder import RunFolder
from vitlab.core.summary import Summary
from vitlab.sweep import launchers, worker
from vitlab.sweep.record import Job, Sweep
from vitlab.sweep.worker import Worker


def test_a_job_that_another_process_runs_is_left_alone_and_waited_for(
    call: Calls, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    call(*SHORT, "model.depth=1,2", fate={1: "failed", 2: "failed"}, fails="2 of 2")
    folder = RunFolder(tmp_path / "sweep" / "depth-1")
    held = take(folder.path)
    assert states(tmp_path / "sweep")["depth=1"] == "failed"
    assert Sweep.load("sweep").state(Sweep.load("sweep").jobs[0]) == "running"

    waiting: list[str] = []

    def end() -> None:
        wait_for(lambda: waiting)
        Summary(folder.summary).update(status="finished")
        held.release()

    monkeypatch.setattr(launchers, "say", waiting.append)
    threading.Thread(target=end).start()
    capsys.readouterr()
    assert call("sweep.resume=sweep") == ["depth-2"]
    (said,) = waiting
    assert "waiting for jobs that other processes run" in said
    assert f"depth=1: running, by process {os.getpid()} on " in said
    assert "] depth=1" not in capsys.readouterr().out, "who runs a job tells of it"
    assert states(tmp_path / "sweep") == {"depth=1": "finished", "depth=2": "finished"}


def test_a_job_whose_worker_is_killed_is_taken_over_by_one_that_is_there(call: Calls, tmp_path: Path) -> None:
    call(*SHORT, "model.depth=1,2", fate={1: "failed", 2: "failed"}, fails="2 of 2")
    held = take(tmp_path / "sweep" / "depth-1")

    def end() -> None:
        wait_for(lambda: "finished" in states(tmp_path / "sweep").values())
        kill(held)

    threading.Thread(target=end).start()
    assert call("sweep.resume=sweep") == ["depth-2", "depth-1"]


def test_a_job_that_has_failed_elsewhere_meanwhile_is_not_tried_again(call: Calls, tmp_path: Path) -> None:
    call(*SHORT, "model.depth=1,2", fate={1: "failed", 2: "failed"}, fails="2 of 2")
    folder = RunFolder(tmp_path / "sweep" / "depth-1")
    held = take(folder.path)

    def end() -> None:
        wait_for(lambda: "finished" in states(tmp_path / "sweep").values())
        Summary(folder.summary).update(status="failed", error="again")
        held.release()

    threading.Thread(target=end).start()
    assert call("sweep.resume=sweep", fails="1 of 2 jobs failed: depth=1") == ["depth-2"]


def test_jobs_that_are_added_to_a_sweep_reach_the_workers_that_are_there(call: Calls, tmp_path: Path) -> None:
    call(*SHORT, "model.depth=1,2", fate={1: "failed", 2: "failed"}, fails="2 of 2")
    folder = RunFolder(tmp_path / "sweep" / "depth-1")
    held = take(folder.path)

    def add() -> None:
        wait_for(lambda: "finished" in states(tmp_path / "sweep").values())
        other = Sweep.load("sweep")
        other.jobs.append(Job(("model.depth=3",), "depth=3", "depth-3"))
        other.save()
        shutil.copytree(tmp_path / "sweep" / "depth-2", tmp_path / "new")
        for path in (*(tmp_path / "new").glob(".claim*"), tmp_path / "new" / "summary.json"):
            path.unlink()
        (tmp_path / "new").rename(tmp_path / "sweep" / "depth-3")
        wait_for(lambda: "depth-3" in (tmp_path / "starts").read_text())
        Summary(folder.summary).update(status="finished")
        held.release()

    threading.Thread(target=add).start()
    assert call("sweep.resume=sweep") == ["depth-2", "depth-3"]
    assert {*states(tmp_path / "sweep").values()} == {"finished"}


def test_a_job_without_its_session_ends(tmp_path: Path) -> None:
    called = Worker(tmp_path, at_a_time=1)
    assert called.stop_signal() == signal.SIGTERM, "not there yet, or gone"
    with called.open():
        assert called.stop_signal() is None
        called.request_stop(signal.SIGINT)
        assert called.stop_signal() == signal.SIGINT
    folder = RunFolder(make_run(tmp_path / "run", "data.channels=3", status="waiting"))
    called.run_jobs(folder)
    assert folder.state() == "waiting"


def test_a_job_of_a_call_that_was_killed_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, called = (
        RunFolder(make_run(tmp_path / "run", "data.channels=3", status="waiting")),
        Worker(tmp_path, at_a_time=1),
    )
    monkeypatch.setattr(worker, "start", lambda folder, **options: subprocess.Popen(["true"]))
    held = take(folder.path)
    with called.open():
        assert called.start(folder) is None, "the call that has the job is alive"
        kill(held)
        with open(folder.path / ".lock", "w") as lock:
            assert try_lock(lock), "its job still writes a checkpoint"
            monkeypatch.setattr(time, "sleep", lambda seconds: lock.close())  # and has ended meanwhile
            job = called.start(folder)
        assert job is not None
        assert job.poll(60) == 0
        assert called.has_tried(folder)


def test_a_job_that_was_taken_over_leaves_no_word_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    folder, called = (
        RunFolder(make_run(tmp_path / "run", "data.channels=3", status="waiting")),
        Worker(tmp_path, at_a_time=1),
    )
    monkeypatch.setattr(
        worker,
        "start",
        lambda folder, **options: subprocess.Popen([sys.executable, "-c", "input()"], stdin=-1),
    )
    before = folder.summary.read_text()
    with called.open():
        job = called.start(folder)
        assert job is not None
        (folder.path / f".claim-{job.claim.number + 1}").touch()  # as another one has made it
        assert job.claim.is_lost()
        wait_for(lambda: job.poll() is not None)
        assert called.stop_signal() is None
    assert folder.summary.read_text() == before
    assert "was taken over by another process" in capsys.readouterr().out


def test_locks_and_sessions_of_a_dead_machine_are_in_nobodys_way(
    call: Calls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call(*SHORT, "model.depth=1,2", fate={1: "failed", 2: "failed"}, fails="2 of 2")
    for name in (".sweep.lock", "depth-1/.lock", ".session-elsewhere-7-0"):
        (tmp_path / "sweep" / name).write_text("elsewhere")
    kill(take(tmp_path / "sweep" / "depth-1"), machine="elsewhere")
    monkeypatch.setattr(claim, "STALE", 0.5)  # seconds
    assert call(*SHORT, "model.depth=1,2") == ["depth-2", "depth-1"], "what is certainly free comes first"


@pytest.mark.parametrize("disk", ["with locks", "without"])
def test_cores_and_gpus_are_divided(
    disk: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    if disk == "without":
        request.getfixturevalue("no_locks")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    monkeypatch.setattr(worker, "count_cores", lambda: 7)
    (tmp_path / f".session-{claim.name_machine()}-0-0{worker.GPU}3").mkdir()  # of a session that was killed
    called = Worker(tmp_path, at_a_time=2)
    with called.open(), called.share(1) as one, called.share("auto") as two, called.share(1) as three:
        assert [s["CUDA_VISIBLE_DEVICES"] for s in (one, two, three)] == ["4", "7", "4"]
        assert one["OMP_NUM_THREADS"] == one["VITLAB_CORES"] == "3"
        with called.share(2) as both:
            assert "CUDA_VISIBLE_DEVICES" not in both
    assert list(tmp_path.iterdir()) == []
    alone = Worker(tmp_path, at_a_time=1)
    with alone.open(), alone.share(1) as everything:
        assert everything == {}


# Slow: real trainings, and workers in processes of their own


@pytest.mark.slow
@pytest.mark.parametrize("typed", ["sweep.resume", "hydra.sweep.dir"])
def test_tasks_of_one_allocation_that_start_at_once_share_a_sweep(typed: str, tmp_path: Path) -> None:
    work = [sys.executable, "-m", "tests.light_job", "train"]
    make, folder = [*SHORT[:-1], "seed=range(1,7)"], f"{tmp_path}/sweep"
    if typed == "sweep.resume":
        call = [f"sweep.resume={folder}"]
        begun = subprocess.Popen([*work, *make, f"hydra.sweep.dir={folder}"], cwd=ROOT, stdout=-3)
        wait_for(lambda: [*tmp_path.glob("sweep/*/config.yaml")][5:])
        begun.kill()
        begun.wait()
    else:
        call = [*make, f"hydra.sweep.dir={folder}"]
    tasks = [
        subprocess.Popen(
            [*work, *call],
            cwd=ROOT,
            env=os.environ | {"SLURM_STEP_NUM_TASKS": "3", "SLURM_NTASKS": "3", "SLURM_PROCID": str(number)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(3)
    ]
    said = [task.communicate(timeout=300)[0] for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0, 0], "\n".join(said)
    told = [line for text in said for line in text.splitlines() if re.match(r"\[\d/6\] seed=\d ", line)]
    assert len(told) in ((6,) if typed == "hydra.sweep.dir" else (5, 6)), "each by one task, in all"
    assert len({line.partition("] ")[2].split()[0] for line in told}) == len(told)
    assert ["more: python compare.py" in text for text in said] == [True, False, False], "one shows the table"
    assert {*states(tmp_path / "sweep").values()} == {"finished"}
