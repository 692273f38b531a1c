"""MLflow: a study as one experiment."""

import contextlib
import logging
import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import MLFlowLogger

from vitlab.core.claim import end_if_lost
from vitlab.core.files import try_lock
from vitlab.core.run_folder import RunFolder
from vitlab.core.summary import SummaryData
from vitlab.training.trackers.identity import hyperparameters, keep_id, read_id, run_name, sweep_name
from vitlab.training.trackers.step_table import StepTable, by_step

# A run waits for its server: not for the two minutes and seven attempts that are MLflow's own.
for variable, value in (
    ("MLFLOW_HTTP_REQUEST_TIMEOUT", "10"),  # seconds
    ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1"),
    ("MLFLOW_ARTIFACT_UPLOAD_DOWNLOAD_TIMEOUT", "60"),  # seconds
    ("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false"),
    ("MLFLOW_DISABLE_TELEMETRY", "true"),
):
    os.environ.setdefault(variable, value)  # read when mlflow is imported

from mlflow.entities import Metric  # noqa: E402
from mlflow.exceptions import MlflowException  # noqa: E402

EVERY = 10.0  # seconds between two requests with metrics
FINAL = ("hp/", "test/")  # one value a run: at step 0 MLflow draws them as bars, elsewhere as single dots
MOST = 1000  # metrics that MLflow takes in one
PATIENCE = 60.0  # seconds to wait for other jobs that open the database
SQLITE = "sqlite:///"


class MLflowTracker(MLFlowLogger):
    """Log a run to MLflow, with its figures, and with its checkpoints if asked to.

    A run that resumes goes on as the same run of MLflow: what that has already is not logged again, and what
    it lacks, because a server was away, is made up for from ``steps.csv``.

    Args:
        table: has all that is logged, and is logged to first.
        checkpoints: upload best.ckpt and last.ckpt when the run has finished.
    """

    def __init__(
        self,
        folder: RunFolder,
        table: StepTable,
        config: Mapping[str, Any],
        *,
        tracking_uri: str,
        checkpoints: bool,
    ) -> None:
        for name in ("mlflow", "alembic"):  # which tell of every new database and experiment
            logging.getLogger(name).setLevel(logging.ERROR)
        self.database: Path | None = None
        artifacts = None  # a server knows where
        if tracking_uri.startswith(SQLITE):
            self.database = Path(tracking_uri.removeprefix(SQLITE)).absolute()
            self.database.parent.mkdir(parents=True, exist_ok=True)
            artifacts = str(self.database.with_name("mlartifacts"))
        tags = {
            "folder": str(folder),
            "sweep": sweep_name(folder, config),
            "mlflow.source.name": "train.py",  # whatever has started this process
        }
        with self._alone():  # this makes the database
            super().__init__(
                config["study"],
                run_name(folder, config),
                tracking_uri,
                {name: value for name, value in tags.items() if value},
                artifact_location=artifacts,
                run_id=read_id(folder, "mlflow"),
            )
        self.folder, self.table, self.checkpoints = folder, table, checkpoints
        self._sent = 0  # of the table's entries
        self._sent_at = time.monotonic()
        self._there: dict[str, int] = {}  # metric → the last step that MLflow has of it

    def begin(self, config: Mapping[str, Any]) -> None:
        try:
            client = self.experiment
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                self._run_id = None  # of another database or server than the one that is configured now
            elif error.error_code != "RESOURCE_ALREADY_EXISTS":  # another job has just made the experiment
                raise
            client = self.experiment
        keep_id(self.folder, "mlflow", str(self.run_id))
        known = client.get_run(self.run_id).data
        for name in known.metrics:
            self._there[name] = max(point.step for point in client.get_metric_history(self.run_id, name))
        parameters = {_permitted(key): value for key, value in hyperparameters(config).items()}
        # One that is there cannot be changed.
        self.log_hyperparams({key: text for key, text in parameters.items() if key not in known.params})
        client.update_run(self.run_id, status="RUNNING")
        client.log_artifact(self.run_id, str(self.folder.config))
        self._send()

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Open the database while no other job does: MLflow makes its tables without a lock."""
        if self.database is None:
            yield
            return
        with open(f"{self.database}.lock", "a") as file:
            with contextlib.suppress(OSError):  # a disk without locks
                try_lock(file, patience=PATIENCE)
            yield

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Send what the table has got meanwhile, if some time has passed."""
        if time.monotonic() - self._sent_at >= EVERY:
            self._send()

    def add_image(self, name: str, pixels: np.ndarray, step: int = 0) -> None:
        self.experiment.log_image(self.run_id, pixels, artifact_file=f"figures/{name}.png")

    def save(self) -> None:
        self._send()

    def finalize(self, status: str = "success") -> None:
        """Mark a run that ends early; training is followed by a test."""
        self._send()
        if status != "success":
            self.experiment.set_terminated(self.run_id, "FAILED")

    def end(self, summary: SummaryData, step: int) -> None:
        self._send()
        if self.folder.figures.exists():
            self.experiment.log_artifacts(self.run_id, str(self.folder.figures), "figures")
        for path in (self.folder.best, self.folder.last):
            if self.checkpoints and path.exists():
                self.experiment.log_artifact(self.run_id, str(path), "checkpoints")
        self.experiment.set_terminated(self.run_id, "FINISHED")

    def _send(self) -> None:
        end_if_lost(self.folder.path)
        new, self._sent = self.table.entries[self._sent :], len(self.table.entries)
        now = int(time.time() * 1000)
        metrics = [
            Metric(_permitted(name), value, now, 0 if name.startswith(FINAL) else step)
            for step, values in by_step(new)
            for name, value in values.items()
        ]
        metrics = [metric for metric in metrics if metric.step > self._there.get(metric.key, -1)]
        for first in range(0, len(metrics), MOST):
            self.experiment.log_batch(self.run_id, metrics[first : first + MOST])
        self._there.update((metric.key, metric.step) for metric in metrics)  # the epoch comes twice a step
        self._sent_at = time.monotonic()


def _permitted(name: str) -> str:
    """Return a name that MLflow takes; names of classes may hold anything."""
    parts = (re.sub(r"[^\w. :-]", "_", part) for part in name.split("/"))
    return "/".join(part if part.strip(".") else "_" for part in parts)
