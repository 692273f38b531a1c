"""The run folder: nothing half-written, nothing overwritten, nothing damaged passes for sound."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vitlab.core.errors import UserError
from vitlab.core.run_folder import RunFolder, State
from vitlab.core.summary import Summary


def test_a_folder_is_claimed_once(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", {"seed": 1})
    assert run.read_config() == {"seed": 1}
    with pytest.raises(UserError, match="resume="):
        RunFolder.create(tmp_path / "run", {"seed": 2})
    assert run.read_config() == {"seed": 1}


def test_find_takes_the_folder_or_a_file_in_it_and_suggests_a_neighbour(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "study" / "run1", {})
    run.checkpoints.mkdir()
    for path in (run.path, run.config, run.checkpoints, run.last):
        assert RunFolder.find(path).path == run.path
    with pytest.raises(UserError, match=r"does not exist .did you mean .*run1"):
        RunFolder.find(tmp_path / "study" / "run2")
    with pytest.raises(UserError, match=r"holds 1 runs.*run1"):
        RunFolder.find(tmp_path / "study")


def test_a_folder_at_the_root_is_refused_without_a_search_of_the_whole_disk() -> None:
    with pytest.raises(UserError, match="does not exist"):
        RunFolder.find("/nowhere-at-all")


@pytest.mark.parametrize("content", [b"", b"[1]", b"a: [", b"\xff\xfe\x00"])
def test_an_unreadable_config_is_said_plainly(tmp_path: Path, content: bytes) -> None:
    run = RunFolder.create(tmp_path / "run", {})
    run.config.write_bytes(content)
    with pytest.raises(UserError, match=r"config\.yaml"):
        run.read_config()


def test_two_processes_cannot_train_in_one_folder(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", {})
    other = (
        "import sys; from vitlab.core.run_folder import RunFolder\n"
        "with RunFolder(sys.argv[1]).lock(): print('locked', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", other, str(run.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"locked\n"
        with pytest.raises(UserError, match=f"process {process.pid} "), run.lock():
            pass
        process.kill()  # a lock goes with its process, even by kill -9
    with run.lock():
        pass


def test_summary_merges_and_survives_a_damaged_file(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    Summary(run.summary).update(status="running", train={"epochs": 1})
    Summary(run.summary).update(train={"steps": 5})
    assert json.loads(run.summary.read_text()) == {"status": "running", "train": {"epochs": 1, "steps": 5}}
    with pytest.raises(ValueError, match="JSON"):
        Summary(run.summary).update(loss=float("nan"))
    run.summary.write_text("{")
    Summary(run.summary).update(status="failed")
    assert json.loads(run.summary.read_text()) == {"status": "failed"}


def test_a_folder_that_is_moved_under_its_run_is_named(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", {"seed": 1})
    summary = Summary(run.summary)
    summary.update(status="running")
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"run was moved or deleted .* continue with resume=<there>"):
        summary.update(status="failed")


@pytest.mark.parametrize(
    ("summary", "state"),
    [
        *((None, State.WAITING), ({}, State.WAITING), ({"status": []}, State.WAITING)),
        *(({"status": s}, s) for s in (State.FINISHED, State.FAILED, State.INTERRUPTED, State.PRUNED)),
        ({"status": "running"}, State.INTERRUPTED),  # killed
    ],
)
def test_the_state_follows_from_the_summary_and_the_locks(
    tmp_path: Path, summary: dict[str, Any] | None, state: State
) -> None:
    folder = RunFolder(tmp_path)
    if summary is not None:
        folder.summary.write_text(json.dumps(summary))
    assert folder.state() == state
    with folder.lock():
        assert folder.state() == (state if state in ("finished", "pruned") else State.RUNNING)
