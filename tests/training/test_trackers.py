"""steps.csv, MLflow and W&B: the same points, nothing twice after a resume, and no tracker ends a run."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient

from tests.chaos import close, read_series
from tests.conftest import TINY, Train, on_two, same_weights, slow, summary, train_in, verb, wait_for
from tests.trackers import csv_points, mlflow_points, mlflow_run, wandb_points, wandb_records
from tests.training.test_disk_faults import at_batch
from vitlab.core.errors import UserError
from vitlab.core.run_folder import RunFolder
from vitlab.training.run import run
from vitlab.training.trackers.step_table import StepTable
from vitlab.training.trackers.tracker import Guarded

ALL = "logger=[tensorboard,csv,mlflow,wandb]"


def options(store: Path, *more: str) -> list[str]:
    return [ALL, f"logger.mlflow.tracking_uri=sqlite:///{store}", "trainer.log_every_n_steps=1", *more]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's database for all runs: to make one takes a second."""
    return tmp_path_factory.mktemp("store") / "mlflow.db"


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory, store: Path) -> Path:
    """A run that has all trackers."""
    asked = [f"logger.{name}.checkpoints=true" for name in ("mlflow", "wandb")]
    given = options(store, *asked, "study=shown", "callbacks.figures=true")
    return train_in(tmp_path_factory.mktemp("shown") / "first", *given)


def test_every_tracker_has_the_same_points(shown: Path) -> None:
    points = csv_points(shown)
    assert [step for step, _ in points["train/loss_step"]] == [*range(16)]
    assert points["epoch"] == [(7, 1), (15, 2)], "from 1, as in metrics.csv"
    assert points["hp/test_accuracy"] == [(16, summary(shown)["metrics"]["test/accuracy"])]
    as_bars = {name: [(0, points[name][0][1])] for name in points if name.startswith(("hp/", "test/"))}
    assert mlflow_points(shown) == points | as_bars
    assert wandb_points(shown) == points
    drawn = read_series(shown)
    assert drawn.keys() == points.keys()
    assert close({**drawn, "epoch": 0}, {**points, "epoch": 0})


def test_mlflow_has_hyperparameters_figures_and_checkpoints(shown: Path, store: Path) -> None:
    client, found = mlflow_run(shown)
    assert found.info.run_name == "first"
    assert found.info.status == "FINISHED"
    assert client.get_experiment(found.info.experiment_id).name == "shown"
    assert found.data.tags["folder"] == str(shown)
    expected = {"model": "vit_tiny", "model.depth": "2", "trainer.max_epochs": "2", "compile": "false"}
    assert expected.items() <= found.data.params.items()
    figures = {f"figures/{path.name}" for path in (shown / "figures").iterdir()}
    listed = {item.path for item in client.list_artifacts(found.info.run_id, "figures")}
    assert len(figures) == 5
    assert listed == figures
    kept = {item.path for item in client.list_artifacts(found.info.run_id, "checkpoints")}
    assert kept == {"checkpoints/best.ckpt", "checkpoints/last.ckpt"}
    assert not list(store.parent.glob("mlruns"))


def test_wandb_has_hyperparameters_figures_and_checkpoints(
    shown: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    records = list(wandb_records(shown))
    (begun,) = [record.run for record in records if record.HasField("run")]
    assert (begun.project, begun.display_name) == ("shown", "first")
    assert begun.run_id == json.loads((shown / "trackers.json").read_text())["wandb"]
    config = {item.key: item.value_json for record in records for item in record.config.update}
    assert json.loads(config["model"])["depth"] == 2
    items = [item for record in records for item in record.history.item]
    images = {item.key or item.nested_key[0] for item in items if "media/images" in item.value_json}
    assert images == {f"figures/{path.stem}" for path in (shown / "figures").iterdir()}
    (artifact,) = [record.artifact for record in records if record.HasField("artifact")]
    assert {entry.path for entry in artifact.manifest.contents} == {"best.ckpt", "last.ckpt"}
    assert [record.exit.exit_code for record in records if record.HasField("exit")] == [0]
    assert "wandb" not in "".join(capfd.readouterr()).replace("wandb sync", "")


def fail() -> None:
    raise RuntimeError("a fault")


# The first epoch has eight batches and the only checkpoint by then: three steps are logged again.
@pytest.mark.parametrize("moved", [False, slow(True)])
def test_a_run_that_resumes_has_every_point_once(
    shown: Path, store: Path, fresh: Train, monkeypatch: pytest.MonkeyPatch, moved: bool
) -> None:
    folder = fresh(*options(store, "study=shown"))
    with monkeypatch.context() as patch:
        at_batch(patch, 12, fail)
        with pytest.raises(RuntimeError, match="a fault"):
            run(RunFolder(folder))
    _, failed = mlflow_run(folder)
    assert failed.info.status == "FAILED"
    assert len(mlflow_points(folder)["train/loss_step"]) > 8, "beyond the checkpoint"
    if moved:  # to another database, which knows nothing of it
        config = yaml.safe_load((folder / "config.yaml").read_text())
        config["logger"]["mlflow"]["tracking_uri"] = f"sqlite:///{folder.parent}/other.db"
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
    run(RunFolder(folder))
    for read in (csv_points, mlflow_points, wandb_points):
        assert close(read(shown), read(folder))
    assert (mlflow_run(folder)[1].info.run_id == failed.info.run_id) is not moved
    assert mlflow_run(folder)[1].info.status == "FINISHED"


def notes(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("note:")]


@pytest.fixture
def silent() -> Iterator[int]:
    """The port of a server that accepts and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def without_mlflow(folder: Path, finished: Path, said: str) -> str:
    """Check that a run has finished as any other, with one note; return that."""
    assert summary(folder)["status"] == "finished"
    assert same_weights(finished, folder)
    (note,) = notes(said)
    assert note.startswith("note: the run goes on without MLflow, which failed: ")
    assert "Traceback" not in said
    return note


def test_a_server_that_is_down_is_a_note(
    finished: Path, train: Train, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    folder = train("logger=mlflow", f"logger.mlflow.tracking_uri=http://127.0.0.1:{port}")
    assert "refused" in without_mlflow(folder, finished, "".join(capfd.readouterr())).lower()
    assert csv_points(folder)["train/loss"], "what it would have got"


def test_a_server_that_never_answers_is_a_note(
    finished: Path,
    train: Train,
    silent: int,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    folder = train("logger=mlflow", f"logger.mlflow.tracking_uri=http://127.0.0.1:{silent}")
    assert "timed out" in without_mlflow(folder, finished, "".join(capfd.readouterr()))


def test_a_database_that_breaks_in_the_middle_is_a_note(
    finished: Path,
    shown: Path,
    store: Path,
    fresh: Train,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    broken = shutil.copy(store, tmp_path / "broken.db")
    folder = fresh("logger=[csv,mlflow]", f"logger.mlflow.tracking_uri=sqlite:///{broken}")
    with monkeypatch.context() as patch:
        at_batch(patch, 10, lambda: broken.write_bytes(b"no database" * 1000))
        run(RunFolder(folder))
    said = without_mlflow(folder, finished, "".join(capfd.readouterr()))
    assert "file is not a database" in said


class Broken:
    """A tracker that fails at one of its calls."""

    def __init__(self, at: str, error: BaseException) -> None:
        self.at, self.error, self.calls = at, error, list[str]()

    def __getattr__(self, name: str) -> Any:
        def call(*given: Any) -> None:
            self.calls.append(name)
            if name == self.at:
                raise self.error

        return call


def call_all(guarded: Guarded) -> None:
    guarded.begin({})
    guarded.log_metrics({}, 0)
    guarded.add_image("a", None)  # type: ignore[arg-type]
    guarded.save()
    guarded.finalize("success")
    guarded.end({}, 1)


@pytest.mark.parametrize("at", ["begin", "log_metrics", "add_image", "save", "finalize", "end"])
def test_whatever_fails_in_a_tracker_is_said_once_and_it_is_left_alone(at: str) -> None:
    said: list[str] = []
    broken = Broken(at, OSError("first line\nsecond line"))
    call_all(Guarded("It", lambda: broken, said.append))
    assert said == ["note: the run goes on without It, which failed: first line second line"]
    assert broken.calls[-1] == at


def test_what_is_no_fault_of_a_tracker_passes() -> None:
    with pytest.raises(KeyboardInterrupt):
        call_all(Guarded("It", lambda: Broken("save", KeyboardInterrupt()), print))


def test_steps_that_a_resume_repeats_are_dropped_from_steps_csv(tmp_path: Path) -> None:
    table = StepTable(RunFolder(tmp_path), resumed_at=None)
    for step in range(4):
        table.log_metrics({"train/loss": 0.1 * step}, step)
    table.log_metrics({"learning_rate": 1e-3}, 1)  # later than its step
    table.save()
    resumed = StepTable(RunFolder(tmp_path), resumed_at=2)
    assert resumed.entries == [(0, {"train/loss": 0.0}), (1, {"train/loss": 0.1, "learning_rate": 1e-3})]
    resumed.save()
    assert csv_points(tmp_path)["train/loss"] == [(0, 0.0), (1, 0.1)]


def test_a_damaged_steps_csv_is_named(fresh: Train) -> None:
    folder = fresh("logger=csv")
    (folder / "steps.csv").write_text("step,train/loss\n0,what\n")
    record: Mapping[str, Any] = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps({**record, "device": "begun"}))
    with pytest.raises(UserError, match=r"steps.csv cannot be read .*Mend or delete it"):
        run(RunFolder(folder))


def test_a_run_that_is_refused_leaves_nothing_of_its_trackers(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", {})
    for path in (folder.steps, folder.trackers):
        path.touch()
    os.makedirs(folder.path / "wandb" / "offline-run-1")
    folder.discard()
    assert not folder.path.exists()


@pytest.mark.slow
def test_a_server_that_dies_in_the_middle_is_a_note(
    finished: Path,
    fresh: Train,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    store = tmp_path / "mlflow.db"  # its own: without the server its artifacts have no place
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--workers=1", f"--port={port}"]
    with subprocess.Popen(
        [*command, f"--backend-store-uri=sqlite:///{store}"],
        cwd=store.parent,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as server:
        try:
            wait_for(lambda: _answers(port))
            address = f"logger.mlflow.tracking_uri=http://127.0.0.1:{port}"
            folder = fresh("logger=mlflow", address, "callbacks.checkpoint.every_minutes=1e-6")
            with monkeypatch.context() as patch:
                at_batch(patch, 10, lambda: os.killpg(server.pid, signal.SIGKILL))
                run(RunFolder(folder))
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)
    assert "refused" in without_mlflow(folder, finished, "".join(capfd.readouterr()))
    run_id = json.loads((folder / "trackers.json").read_text())["mlflow"]
    known = MlflowClient(f"sqlite:///{store}").get_run(run_id)
    assert known.info.status == "RUNNING"
    assert "val/loss" in known.data.metrics, "of the first epoch"


@pytest.mark.slow
def test_wandb_whose_process_is_killed_is_a_note_and_the_next_run_has_another(
    finished: Path,
    fresh: Train,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder = fresh("logger=wandb", "callbacks.checkpoint.every_minutes=1e-6")

    def kill() -> None:
        for stat in Path("/proc").glob("[0-9]*/stat"):
            number, name, _, parent = stat.read_text().split()[:4]
            if name == "(wandb-core)" and int(parent) == os.getpid():
                os.kill(int(number), signal.SIGKILL)

    with monkeypatch.context() as patch:
        at_batch(patch, 10, kill)
        run(RunFolder(folder))
    said = "".join(capfd.readouterr())
    assert [note.partition(",")[0] for note in notes(said)] == ["note: the run goes on without W&B"]
    assert "Traceback" not in said
    assert same_weights(finished, folder)
    later = fresh("logger=[csv,wandb]", name="later")
    run(RunFolder(later))
    assert not notes("".join(capfd.readouterr()))
    assert wandb_points(later) == csv_points(later)


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health") as answer:
        return bool(answer.status == 200)
    return False


@pytest.mark.slow
def test_jobs_of_a_sweep_at_a_time_share_a_database_that_does_not_exist_yet(tmp_path: Path) -> None:
    typed = [o for o in TINY if not o.startswith(("logger", "model.depth"))]
    store = f"logger.mlflow.tracking_uri=sqlite:///{tmp_path}/mlflow.db"
    swept = ("-m", "model.depth=1,2", "seed=1,2", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    ended = verb(*typed, *swept, "logger=mlflow", store, "study=grid", f"hydra.sweep.dir={tmp_path}/sweep")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    found = client.search_runs([client.get_experiment_by_name("grid").experiment_id])
    assert {run.info.run_name for run in found} == {f"depth={d} seed={s}" for d in (1, 2) for s in (1, 2)}
    assert {run.info.status for run in found} == {"FINISHED"}
    assert len({json.dumps(sorted(run.data.metrics)) for run in found}) == 1
    assert {run.data.tags["sweep"] for run in found} == {"sweep"}


@pytest.mark.slow
def test_of_two_processes_one_logs(tmp_path: Path, store: Path) -> None:
    given = on_two(*(o for o in TINY if not o.startswith("logger")), *options(store))
    ended = verb(*given, f"hydra.run.dir={tmp_path / 'run'}")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert not notes(ended.stdout)
    points = csv_points(tmp_path / "run")
    assert [step for step, _ in points["train/loss_step"]] == [*range(16)]
    assert wandb_points(tmp_path / "run") == points
    assert mlflow_points(tmp_path / "run")["train/loss_step"] == points["train/loss_step"]
