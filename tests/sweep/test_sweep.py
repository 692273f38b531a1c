"""A sweep that is interrupted, fails in part or is called twice comes out as if nothing had happened."""

import importlib.util
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.compare.folders import make_run
from tests.conftest import TINY, started, summary, verb, wait_for
from tests.sweep.helpers import RATE, SHORT, Calls, states
from vitlab.compare import show_leaderboard
from vitlab.core.run_folder import RunFolder
from vitlab.core.signals import Interrupted
from vitlab.core.summary import Summary
from vitlab.sweep import launchers
from vitlab.sweep.progress import Progress
from vitlab.sweep.record import Job, Sweep, folder_name
from vitlab.sweep.worker import Worker


def test_folders_are_named_by_what_was_swept() -> None:
    overrides = ["data=shapes", "model.patch_size=4", "seed=1"]
    text = "patch_size=4 seed=1"
    assert folder_name(text) == "patch_size-4_seed-1"
    for awkward in ("root=/a/b c'd", "size=[4,2]", "x=" + "9" * 300, ""):
        name = folder_name(awkward, ["one"])
        assert 0 < len(name) <= 80
        assert not set(name) & set("/=,'[] ")
    taken = folder_name(text, overrides, [folder_name(text)])
    assert taken.startswith("patch_size-4_seed-1_")
    assert taken == folder_name(text, overrides[::-1], [folder_name(text)])


def test_the_same_command_goes_on_with_what_is_left(call: Calls, tmp_path: Path, capsys: Any) -> None:
    typed = [*SHORT, "model.depth=1,2,3", "seed=1,2"]
    assert len(call(*typed, fate={1: "failed", 2: "killed"}, fails="4 of 6 jobs failed")) == 6
    said = capsys.readouterr().out
    assert "failed after 1:02: training diverged" in said
    assert "the process was killed by signal 9 (SIGKILL)" in said
    assert states(tmp_path / "sweep") == {
        f"depth={d} seed={s}": "finished" if d == 3 else "failed" for d in (1, 2, 3) for s in (1, 2)
    }
    other_order = [SHORT[0], "seed=2,1", *SHORT[1:], "model.depth=3,1,2"]
    assert call(*other_order, fate={2: "failed"}, fails="2 of 6 jobs failed") == [
        *("depth-1_seed-1", "depth-1_seed-2", "depth-2_seed-1", "depth-2_seed-2"),
    ]
    assert "resuming sweep, which has the same jobs" in capsys.readouterr().out
    assert call("sweep.resume=sweep") == ["depth-2_seed-1", "depth-2_seed-2"]
    assert set(states(tmp_path / "sweep").values()) == {"finished"}
    capsys.readouterr()
    assert call(*typed) == []
    said = capsys.readouterr().out
    assert "sweep is already finished: 6 jobs" in said
    assert "By val accuracy, against depth=1, the first of the study" in said
    table = said[said.index("│") :]
    assert table.index("depth=3") < table.index("depth=2") < table.index("depth=1"), (
        "best on the hold-out first"
    )
    assert "30.15 ± 0.07" in said


def test_a_new_sweep_and_another_one_are_not_taken_for_the_old(call: Calls, tmp_path: Path) -> None:
    typed = [o for o in SHORT if not o.startswith("hydra.sweep.dir")]
    for extra, number in (([], 1), ([], 1), (["sweep.new=true"], 2), (["trainer.min_epochs=1"], 3)):
        call(*typed, "seed=1,2", *extra)
        assert len(list((tmp_path / "outputs/runs").iterdir())) == number
    call(*SHORT, "seed=1,2")
    call(*SHORT, "seed=1,2,3", fails=r"holds another sweep.*sweep.resume=sweep")
    call(*SHORT, "seed=1,2", "sweep.new=true", fails="holds another sweep")


def test_a_sweep_is_extended(call: Calls, tmp_path: Path, capsys: Any) -> None:
    call(*SHORT, "seed=1,2")
    more = [o for o in SHORT if not o.startswith("hydra.sweep.dir")]
    assert call(*more, "sweep.resume=sweep", "seed=1,2,3") == ["seed-3"]
    assert "[3/3] seed=3" in capsys.readouterr().out
    assert len(states(tmp_path / "sweep")) == 3
    assert call(*SHORT, "seed=1,2,3") == [], "is now the same"


def test_what_cannot_run_is_skipped_with_its_reason(call: Calls, tmp_path: Path, capsys: Any) -> None:
    # 5 does not divide the image; a batch of 100 is more than there is, which only the data tells.
    typed = [o for o in SHORT if not o.startswith("data.batch_size")]
    names = call(*typed, "model.patch_size=4,5", "data.batch_size=8,100")
    assert names == ["patch_size-4_batch_size-8"]
    said = capsys.readouterr().out
    assert "3 of 4 combinations are skipped" in said
    assert "1 job in sweep" in said
    assert said.index("does not divide") < said.index("[1/1]"), "before any training"
    jobs = json.loads((tmp_path / "sweep" / "sweep.json").read_text())["jobs"]
    reasons = {job["label"]: job["reason"] for job in jobs if job["state"] == "skipped"}
    assert len(reasons) == 3
    assert "100" in reasons["patch_size=4 batch_size=100"]
    call(*typed[:-1], "hydra.sweep.dir=b", "model.patch_size=4", "data.batch_size=100,200", fails="100")
    assert not (tmp_path / "b").exists()


def test_ctrl_c_ends_the_sweep_and_says_how_to_go_on(call: Calls, tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(Interrupted) as stop:
        call(*SHORT, "model.depth=1,2,3", fate={2: "interrupted"})
    assert stop.value.exit_code == 130
    said = capsys.readouterr().out
    assert "stopped with 2 of 3 jobs left" in said
    assert "sweep.resume=sweep" in said
    after = {"depth=1": "finished", "depth=2": "interrupted", "depth=3": "waiting"}
    assert states(tmp_path / "sweep") == after
    assert not list((tmp_path / "sweep").glob(".session*"))
    assert call(*SHORT, "model.depth=1,2,3") == ["depth-2", "depth-3"]


def test_a_sweep_that_slurm_has_warned_is_put_back_into_the_queue_once(
    call: Calls, capsys: Any, scontrol: Callable[[], str]
) -> None:
    typed = [*SHORT, "model.depth=1,2", "callbacks.checkpoint.requeue=true"]
    with pytest.raises(Interrupted):
        call(*typed, fate={1: "warned"})
    assert scontrol() == "requeue 42\n"
    assert "queued again as job 42" in capsys.readouterr().out
    assert call(*typed) == ["depth-1", "depth-2"]


def test_a_signal_reaches_the_job_and_no_further_one_starts(call: Calls, tmp_path: Path) -> None:
    handler = signal.getsignal(signal.SIGINT)

    def interrupt() -> None:
        wait_for((tmp_path / "starts").read_text)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    begun = time.monotonic()
    with pytest.raises(Interrupted):
        call(*SHORT, "model.depth=1,2", fate={1: "wait"})
    assert time.monotonic() - begun < 20
    assert (tmp_path / "starts").read_text().split() == ["depth-1"]
    assert signal.getsignal(signal.SIGINT) is handler


def test_changed_files_in_conf_do_not_change_a_sweep_and_are_noted(
    call: Calls, tmp_path: Path, capsys: Any
) -> None:
    call(*SHORT, "model.depth=1,2", fate={2: "failed"}, fails="1 of 2")
    file = tmp_path / "sweep" / "depth-2" / "config.yaml"
    file.write_text(file.read_text().replace("matmul_precision: high", "matmul_precision: highest"))
    call(*SHORT, "model.depth=1,2")
    assert "conf/ has changed since this sweep began (matmul_precision)" in capsys.readouterr().out


def test_the_record_says_what_to_run_and_not_how(call: Calls, tmp_path: Path) -> None:
    call(*SHORT, "seed=1,2", "sweep.new=false")
    config = yaml.safe_load((tmp_path / "sweep/seed-2/config.yaml").read_text())
    assert config["seed"] == 2
    assert config["swept"] == ["seed"]
    assert config["choices"]["model"] == "vit_tiny"
    assert config["overrides"][-1] == "seed=2"
    assert not {"sweep", "resume"} & {*config, *config["choices"]}


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["sweep.resume=nowhere"], "expected the folder of a sweep"),
        (["sweep.resume=damaged"], r"sweep.json cannot be read"),
        (["sweep.resume="], "sweep.resume= needs the name of a folder"),
        (["sweep.new=true", "seed=1"], "belongs to a sweep: add -m"),
        (["-m", "seed=1,2", "hydra/launcher=joblib", "hydra.launcher.n_jobs=0"], "n_jobs=0"),
        (["-m", "seed=1,2", "sweep.nw=true"], "did you mean sweep.new?"),
    ],
)
def test_mistakes_are_answered(call: Calls, tmp_path: Path, typed: list[str], words: str) -> None:
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "sweep.json").write_text('{"command": ')
    if "n_jobs" in words and not importlib.util.find_spec("hydra_plugins"):
        pytest.skip("no joblib launcher")
    call(*typed, fails=words)
    assert not (tmp_path / "outputs").exists()


def test_a_missing_extra_is_named(call: Calls, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(launchers, "_is_installed", lambda target: "basic" in target)
    call(*SHORT, "seed=1,2", "hydra/launcher=joblib", fails=r"pip install -e .\[joblib\]")
    call(*SHORT, "seed=1,2", "hydra/launcher=submitit_slurm", fails=r"pip install -e .\[submitit\]")
    assert not (tmp_path / "sweep").exists()


def test_what_is_slurms_is_refused_elsewhere(
    call: Calls, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    packed = "sweep.jobs_per_allocation=2"
    call(
        *SHORT,
        "seed=1,2",
        packed,
        fails="packs the jobs of hydra/launcher=submitit_slurm, found hydra/launcher=basic",
    )
    call(*SHORT, "seed=1,2", "sweep.jobs_per_allocation=0", fails="a whole number from 1")
    monkeypatch.setattr(launchers, "_is_installed", lambda target: True)
    monkeypatch.setenv("PATH", "")
    call(
        *SHORT,
        "seed=1,2",
        packed,
        "hydra/launcher=submitit_slurm",
        fails="calls sbatch, which this machine has not",
    )
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    monkeypatch.setenv("SLURM_PROCID", "1")
    call(*SHORT[:-1], "seed=1,2", fails="2 tasks of SLURM can work on one sweep if they are told its folder")
    call(*SHORT, "sweep=optuna", RATE, fails="a search is one process: start a single task")
    assert not (tmp_path / "sweep").exists()


def test_a_signal_from_the_scheduler_concerns_its_job_alone(call: Calls, tmp_path: Path) -> None:
    call(*SHORT, "model.depth=1,2", fate={1: "failed", 2: "failed"}, fails="2 of 2")
    folders = [RunFolder(tmp_path / "sweep" / f"depth-{depth}") for depth in (1, 2)]
    (tmp_path / "fate").write_text(json.dumps({1: "interrupted"}))
    called = Worker(tmp_path / "sweep", at_a_time=1)
    with called.open():
        called.enter_allocation(2)
        called.run_jobs(*folders)
        assert called.stop_signal() is None
    assert [folder.state() for folder in folders] == ["interrupted", "finished"]


def test_progress_tells_what_is_done_and_left(tmp_path: Path, capsys: Any) -> None:
    found = Sweep(tmp_path, [], ["depth"], [])
    for depth in (1, 2, 3):
        found.jobs.append(Job((f"depth={depth}",), f"depth={depth}", f"d{depth}"))
        RunFolder.create(tmp_path / f"d{depth}", {"seed": 0})
    found.jobs.append(Job(("depth=0",), "depth=0", None, "no depth"))
    Summary(RunFolder(tmp_path / "d1").summary).update(status="failed", error="of yesterday")
    progress = Progress(found, 3)
    progress.poll()
    assert not capsys.readouterr().out, "a failure of yesterday is no news"
    done = {"status": "finished", "metrics": {"val/accuracy": 0.5}, "train": {"wall_seconds": 3723}}
    Summary(RunFolder(tmp_path / "d2").summary).update(**done)
    assert [progress.is_open(job) for job in found.runnable] == [True, False, True], "as the folders say"
    progress.poll()
    (line,) = capsys.readouterr().out.splitlines()
    said = "[1/3] depth=2  val/accuracy 0.5000  1:02:03   skipped 1, failed 0, left 2, about "
    assert line.startswith(said)
    assert line.endswith("; best depth=2: 0.5000")
    progress.poll()
    assert not capsys.readouterr().out
    error = "it diverged at step 3. Lower the rate."
    Summary(RunFolder(tmp_path / "d3").summary).update(status="failed", error=error)
    progress.poll()
    said = capsys.readouterr().out
    assert "failed after 0:00: it diverged at step 3 (" in said, "the job itself has said the rest"
    assert "d3/train.log)" in said


def test_results_show_what_was_typed_and_are_not_broken_to_the_width_of_their_table(
    tmp_path: Path, capsys: Any
) -> None:
    found = Sweep(tmp_path / ("a" * 70), [], ["augment.ops"], [])
    for name, ops in (("one", "[crop,flip]"), ("two", "[/bold]")):  # no markup of Rich's
        job = Job((f"augment.ops={ops}",), f"ops={ops}", name)
        found.jobs.append(job)
        make_run(found.path / name, f"augment.ops='{ops}'", swept=("augment.ops",))
    show_leaderboard(found.path)
    out = capsys.readouterr().out
    assert "ops=[crop,flip]" in out
    assert "ops=[/bold]" in out
    assert {f"{found}, best val/accuracy first", f"more: python compare.py {found}"} <= {*out.splitlines()}


def test_a_launchers_process_that_is_killed_is_said(call: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")

    def die(*given: Any) -> None:
        raise BrokenProcessPool

    monkeypatch.setattr(launchers, "_launch_elsewhere", die)
    two = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    call(*SHORT, "seed=1,2", *two, fails=r"was killed.*Resume with: python train.py sweep.resume=sweep")


def test_a_launcher_gets_no_further_jobs_once_the_sweep_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called, batches = Worker(tmp_path, at_a_time=2), []

    class Launcher:
        def launch(self, batch: list[list[str]], initial_job_idx: int) -> list[Any]:
            batches.append(batch)
            called.request_stop(signal.SIGINT)
            return []

    monkeypatch.setattr(launchers, "make_launcher", lambda *given: Launcher())
    found = Sweep(tmp_path, [], [], [], [Job((), "", f"job{number}") for number in range(5)])
    with called.open():
        launchers._launch_elsewhere(found.jobs, launchers.check_launcher(found), called, 2)
    assert batches == [[["hydra.sweep.subdir=job0"], ["hydra.sweep.subdir=job1"]]]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["basic", "joblib", "submitit_local"])
def test_a_killed_sweep_is_gone_on_with(launcher: str, tmp_path: Path) -> None:
    plugin = f"hydra_plugins.hydra_{launcher.partition('_')[0]}_launcher"
    if launcher != "basic" and not launchers._is_installed(f"{plugin}.X"):
        pytest.skip(f"no {launcher}")
    typed = ["-m", *(o for o in TINY if not o.startswith("trainer.max_epochs")), f"hydra/launcher={launcher}"]
    typed += ["trainer.max_epochs=40", "seed=1,2", f"hydra.sweep.dir={tmp_path}/sweep"]
    with started(*typed) as process:
        wait_for((tmp_path / "sweep" / "seed-1" / "checkpoints" / "last.ckpt").exists)
        process.kill()
        found = Sweep.load(tmp_path / "sweep")
        # No job outlives the sweep; they still have somewhere to print to.
        wait_for(lambda: "running" not in found.count_states(), seconds=30)
    assert found.state(found.jobs[0]) == "interrupted"
    assert found.state(found.jobs[1]) in ("waiting", "interrupted")
    ended = verb(*typed)
    assert ended.returncode == 0, ended.stderr
    assert "resuming" in ended.stdout
    assert "[2/2]" in ended.stdout
    assert len(summary(tmp_path / "sweep" / "seed-1")["train"]["resumed_at"]) == 1
    assert [summary(tmp_path / "sweep" / name)["status"] for name in ("seed-1", "seed-2")] == ["finished"] * 2
