"""Run folders in every state are read, and said to be what they are."""

import fcntl
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.compare.folders import make_run
from vitlab.compare.read import read_runs
from vitlab.core.errors import UserError


def only(folder: Path):  # type: ignore[no-untyped-def]
    (run,) = read_runs([folder])
    return run


def test_a_finished_run_is_read_whole(tmp_path: Path) -> None:
    run = only(make_run(tmp_path / "s" / "a", "seed=3", "model.depth=4", val=0.61, test=0.6))
    assert (run.state, run.reason, run.seed, run.epochs, run.name) == ("finished", "", "3", 10, "a")
    assert run.metrics["val/accuracy"] == 0.61
    assert run.metrics["test/accuracy"] == 0.6
    assert run.curve[10] == pytest.approx(0.61)
    assert list(run.curve) == list(range(1, 11))
    assert run.cost["parameters"] > 1e6
    assert run.config["model.depth"] == "4"
    assert not {"seed", "study", "data.root", "logger.tensorboard"} & run.config.keys()


def test_runs_are_found_at_any_depth_and_once(tmp_path: Path) -> None:
    for name in ("s/a", "s/sweep/1", "s/sweep/2"):
        make_run(tmp_path / name)
    make_run(tmp_path / "s" / "a" / "kept")  # a run's own folders hold no runs
    assert [run.name for run in read_runs([tmp_path / "s"])] == ["a", "sweep/1", "sweep/2"]
    both = read_runs([tmp_path / "s", tmp_path / "s" / "sweep"])
    assert [run.name for run in both] == ["s/a", "s/sweep/1", "s/sweep/2"]


def test_a_killed_run_is_interrupted_and_one_whose_lock_is_held_is_running(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a", status="running", epochs=4)
    assert only(folder).state == "interrupted"
    assert only(folder).reason == "after epoch 4 of 10, best val accuracy so far 60.00 %"
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert only(folder).state == "running"
    assert only(folder).state == "interrupted"


def test_a_job_whose_turn_has_not_come_waits(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a")
    (folder / "summary.json").unlink()
    (folder / "metrics.csv").unlink()
    assert (only(folder).state, only(folder).reason) == ("waiting", "")


def test_a_failed_run_says_why(tmp_path: Path) -> None:
    run = only(make_run(tmp_path / "a", status="failed", summary={"error": "training diverged\nat step 3"}))
    assert (run.state, run.reason) == ("failed", "training diverged at step 3")


def test_a_combination_that_a_sweep_skipped_is_named(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    jobs = [
        {"label": "patch_size=5", "state": "skipped", "folder": None, "reason": "5 does not divide 32"},
        {"label": "patch_size=4", "state": "finished", "folder": "a", "reason": None},
    ]
    (tmp_path / "sweep.json").write_text(json.dumps({"jobs": jobs}))
    skipped = [run for run in read_runs([tmp_path]) if run.state == "skipped"]
    assert [(run.name, run.reason) for run in skipped] == [("patch_size=5", "5 does not divide 32")]
    (tmp_path / "sweep.json").write_text('{"jobs": [3]}')
    assert [run.name for run in read_runs([tmp_path])] == ["a"]


def truncate(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:40])


BROKEN = {
    "no config": lambda f: (f / "config.yaml").unlink(),
    "config is no mapping": lambda f: (f / "config.yaml").write_text("- 1\n"),
    "config is empty": lambda f: (f / "config.yaml").write_text(""),
    "config is not text": lambda f: (f / "config.yaml").write_bytes(b"\x80\x81\xff\x00"),
    "config is torn": lambda f: (f / "config.yaml").write_text("a: [1,\nb: }"),
    "config names code": lambda f: (f / "config.yaml").write_text("a: !!python/object/apply:os.system [ls]"),
    "config is itself": lambda f: (f / "config.yaml").write_text("a: &a\n  b: *a\n"),
    "config lists itself": lambda f: (f / "config.yaml").write_text("a: &a [*a]\n"),
    "config is a folder": lambda f: ((f / "config.yaml").unlink(), (f / "config.yaml").mkdir()),
    "summary is torn": truncate("summary.json"),
    "summary is empty": lambda f: (f / "summary.json").write_text(""),
    "summary is no mapping": lambda f: (f / "summary.json").write_text("[]"),
    "summary is deep": lambda f: (f / "summary.json").write_text("[" * 100_000),
}


@pytest.mark.parametrize("damage", BROKEN.values(), ids=BROKEN)
def test_a_damaged_run_is_broken_and_says_where(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    damage(make_run(tmp_path / "a"))
    run = read_runs([tmp_path])[0]
    assert run.state == "broken"
    assert run.reason.startswith(("config.yaml: ", "summary.json: "))
    assert "\n" not in run.reason


ODD = {
    "metrics are words": {"metrics": "none"},
    "values are words": {"metrics": {"val/accuracy": "high", "test/accuracy": None}},
    "values are infinite": {"metrics": {"val/accuracy": float("inf"), "test/accuracy": float("nan")}},
    "no model": {"model": None, "train": [1]},
    "odd status": {"status": ["x"]},
}


@pytest.mark.parametrize("summary", ODD.values(), ids=ODD)
def test_odd_values_are_as_if_they_were_not_there(tmp_path: Path, summary: dict[str, object]) -> None:
    run = only(make_run(tmp_path / "a", summary=summary))
    if "metrics" in summary:
        assert not {"val/accuracy", "test/accuracy"} & run.metrics.keys()
    assert run.state == ("interrupted" if "status" in summary else "finished")


def test_a_finished_run_without_its_curve_still_counts(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a")
    (folder / "metrics.csv").unlink()
    assert (only(folder).state, only(folder).reason) == ("finished", "metrics.csv is missing: no curve")
    (folder / "metrics.csv").write_bytes(b"epoch,val/accuracy\n1,0.5\n2,nan\nx,0.5\n3\n4,0.7\n1e300,1\n")
    assert only(folder).curve == {1: 0.5, 4: 0.7}
    (folder / "metrics.csv").write_bytes(b"\xff\xfe")
    assert only(folder).curve == {}
    assert "metrics.csv" in only(folder).reason


def test_names_are_one_line_that_every_file_can_take(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a\n\x1b[31mb\udcff")
    (run,) = read_runs([folder.parent])
    assert run.name.isprintable()
    run.name.encode()


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no run below .*config\.yaml"):
        read_runs([tmp_path])
    make_run(tmp_path / "study" / "a")
    with pytest.raises(UserError, match=r"does not exist \(did you mean '.*study'\?\)"):
        read_runs([tmp_path / "stduy"])
    with pytest.raises(UserError, match="it is a file"):
        read_runs([tmp_path / "study" / "a" / "config.yaml"])
