"""Who has a job: one process at a time, wherever it runs and whatever becomes of it."""

import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.core.claims import kill, take
from vitlab.core import claim
from vitlab.core.claim import STALE, Claim, Watch, end_if_lost, is_held, read_lease
from vitlab.core.run_folder import RunFolder
from vitlab.core.summary import Summary

Elapse = Callable[[float], None]


@pytest.fixture
def elapse(monkeypatch: pytest.MonkeyPatch) -> Elapse:
    """Let so many seconds pass on the clock of whoever looks."""
    passed, real = 0.0, time.monotonic

    def call(seconds: float) -> None:
        nonlocal passed
        passed += seconds

    monkeypatch.setattr(time, "monotonic", lambda: real() + passed)
    return call


def test_a_job_is_free_held_and_free_again(tmp_path: Path) -> None:
    for number in (1, 2):
        standing = Watch().look(tmp_path)
        assert (standing.number, standing.free) == (number, True)
        held = take(tmp_path)
        assert Watch().look(tmp_path).held
        assert is_held(tmp_path)
        held.release()
        assert not is_held(tmp_path)
    kill(held, machine="elsewhere", released=True)
    assert Watch().look(tmp_path).free, "which needs no watching"


def test_a_holder_on_this_machine_that_was_killed_is_known_for_gone_at_once(tmp_path: Path) -> None:
    kill(take(tmp_path))
    assert not is_held(tmp_path)
    assert Watch().look(tmp_path).free


def _race(folder: Path, start: Any, winners: Any) -> None:
    start.wait()
    if held := Claim.take(folder, 1, f".session-{os.getpid()}"):
        winners.put(held._lease["pid"])
        time.sleep(0.5)


def test_of_many_that_take_a_job_at_once_one_gets_it(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    start, winners = context.Event(), context.SimpleQueue()
    processes = [context.Process(target=_race, args=(tmp_path, start, winners)) for _ in range(8)]
    for process in processes:
        process.start()
    start.set()
    for process in processes:
        process.join()
    assert winners.get() in {process.pid for process in processes}
    assert winners.empty()


def test_another_machines_holder_is_there_as_long_as_it_shows_a_beat(tmp_path: Path, elapse: Elapse) -> None:
    held, watch = take(tmp_path), Watch()
    held._token.close()  # a lock that does not reach here
    held._lease["machine"] = "elsewhere"
    held.renew()
    first = watch.look(tmp_path)
    assert (first.free, first.held) == (False, False), "one look says nothing"
    for _ in range(5):
        elapse(STALE - 1)
        held.renew()
        standing = watch.look(tmp_path)
        assert (standing.free, standing.held) == (False, True)
    elapse(STALE - 1)
    assert not watch.look(tmp_path).free
    elapse(2)
    assert watch.look(tmp_path).free
    held._ended.set()


def test_clocks_of_other_machines_count_for_nothing(tmp_path: Path, elapse: Elapse) -> None:
    kill(take(tmp_path), machine="elsewhere")
    watch = Watch()
    for when in (0, time.time() + 1e6):  # of the last beat
        os.utime(tmp_path / ".claim", (when, when))
        assert not watch.look(tmp_path).free
    elapse(STALE + 1)
    assert not Watch().look(tmp_path).free, "who has only just come has not watched"
    assert watch.look(tmp_path).free


def test_of_two_that_find_a_holder_gone_one_takes_over(tmp_path: Path, elapse: Elapse) -> None:
    kill(take(tmp_path), machine="elsewhere")
    watches = [Watch(), Watch()]
    for watch in watches:
        watch.look(tmp_path)
    elapse(STALE + 1)
    numbers = [watch.look(tmp_path).number for watch in watches]
    taken = [Claim.take(tmp_path, number, ".session") for number in numbers]
    assert taken[0] is not None
    assert taken[1:] == [None]
    assert not watches[1].look(tmp_path).free
    taken[0].release()


def test_a_holder_that_wakes_up_finds_its_job_lost_and_writes_nothing(tmp_path: Path, elapse: Elapse) -> None:
    sleeper, watch = take(tmp_path), Watch()
    sleeper._token.close()
    sleeper._lease["machine"] = "elsewhere"
    sleeper.renew()
    watch.look(tmp_path)
    elapse(STALE + 1)
    other = Claim.take(tmp_path, watch.look(tmp_path).number, ".session")
    assert other is not None
    before = (tmp_path / ".claim").read_bytes()
    assert sleeper.is_lost()
    sleeper.renew()
    sleeper.release()
    assert (tmp_path / ".claim").read_bytes() == before
    assert not other.is_lost()
    other.release()


def test_a_late_word_of_a_holder_that_is_out_is_corrected(tmp_path: Path) -> None:
    sleeper = take(tmp_path)
    late = (tmp_path / ".claim").read_bytes()
    kill(sleeper)
    other = take(tmp_path)
    (tmp_path / ".claim").write_bytes(late)  # it was about to write just that when it fell asleep
    assert not other.is_lost()
    assert Watch().look(tmp_path).number == 3
    other.renew()
    lease = read_lease(tmp_path)
    assert lease is not None
    assert lease["number"] == 2
    other.release()


def test_who_has_taken_a_job_and_died_before_it_could_say_so_is_waited_for(
    tmp_path: Path, elapse: Elapse
) -> None:
    (tmp_path / ".claim-1").touch()
    watch = Watch()
    assert not watch.look(tmp_path).free
    elapse(STALE + 1)
    assert watch.look(tmp_path).number == 2
    assert watch.look(tmp_path).free


@pytest.mark.parametrize("content", [b"", b"\0" * 512, b"{", b"[1]", b'{"number": "1"}', b"[" * 9999])
def test_a_damaged_file_is_waited_for_and_replaced(tmp_path: Path, content: bytes, elapse: Elapse) -> None:
    kill(take(tmp_path))
    (tmp_path / ".claim").write_bytes(content)
    watch = Watch()
    assert not watch.look(tmp_path).free
    assert not is_held(tmp_path)
    elapse(STALE + 1)
    held = Claim.take(tmp_path, watch.look(tmp_path).number, ".session")
    assert held is not None
    assert held.number == 2
    assert is_held(tmp_path)
    held.release()
    assert Watch().look(tmp_path).free


@pytest.mark.usefixtures("no_locks")
def test_without_locks_the_beat_decides(tmp_path: Path, elapse: Elapse) -> None:
    held, watch = take(tmp_path), Watch()
    assert is_held(tmp_path)
    assert not watch.look(tmp_path).free
    elapse(STALE / 2)
    held.renew()
    assert watch.look(tmp_path).held
    kill(held)
    watch.look(tmp_path)
    elapse(STALE + 1)
    assert watch.look(tmp_path).free
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    with run.lock():
        assert run.state() == "waiting"


def test_a_watch_does_not_take_its_clock_to_another_machine(tmp_path: Path, elapse: Elapse) -> None:
    import pickle

    kill(take(tmp_path), machine="elsewhere")
    watch = Watch()
    watch.look(tmp_path)
    elapse(STALE + 1)
    assert not pickle.loads(pickle.dumps(watch)).look(tmp_path).free
    assert watch.look(tmp_path).free


def test_a_beat_is_shown_without_being_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "BEAT", 0.01)
    held = take(tmp_path)
    deadline = time.monotonic() + 30
    while held._lease["beat"] < 3:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    held.release()
    assert read_lease(tmp_path) == held._lease


def test_a_job_that_was_taken_over_ends_before_it_writes(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", {"seed": 1})
    held = take(run.path)
    code = (
        "import sys, pathlib; from vitlab.core.summary import Summary\n"
        "path = pathlib.Path(sys.argv[1], 'summary.json')\n"
        "Summary(path).update(status='running', seed=int(sys.argv[2])); print('written')"
    )

    def write(seed: int) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", code, str(run.path), str(seed)],
            env=os.environ | {claim.NUMBER: str(held.number)},
            capture_output=True,
            text=True,
            timeout=60,
        )

    assert write(2).stdout == "written\n"
    kill(held)
    other = take(run.path)
    ended = write(3)
    assert ended.returncode == 1
    assert "another one has taken this job over" in ended.stderr
    assert Summary(run.summary).data["seed"] == 2
    end_if_lost(run.path)  # this process is no job
    other.release()


def test_a_claim_is_never_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("precious")
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / ".claim").symlink_to(tmp_path / "target")
    with pytest.raises(OSError, match="symbolic links"):
        take(tmp_path / "job")
    assert (tmp_path / "target").read_text() == "precious"


def test_a_worker_that_is_faster_than_who_makes_a_folder_keeps_its_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = RunFolder.create.__globals__["write_atomic"]

    def write(path: Path, data: bytes, *, new: bool = False) -> None:
        real(path, data, new=new)
        if path.name == "config.yaml":
            take(path.parent).release()
            (path.parent / "summary.json").write_text(json.dumps({"status": "finished"}))

    monkeypatch.setattr("vitlab.core.run_folder.write_atomic", write)
    assert RunFolder.create(tmp_path / "run", {"seed": 1}).state() == "finished"
