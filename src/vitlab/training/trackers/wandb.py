"""Weights & Biases: a study as one project."""

import atexit
import contextlib
import os
import re
import shutil
from collections.abc import Mapping
from typing import Any

import numpy as np
from lightning.pytorch.loggers import WandbLogger

from vitlab.core.run_folder import RunFolder
from vitlab.core.summary import SummaryData
from vitlab.training.trackers.identity import keep_id, new_id, read_id, run_name, sweep_name
from vitlab.training.trackers.step_table import StepTable, by_step

# Read when wandb is imported.
os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
os.environ.setdefault("WANDB_SILENT", "true")  # its lines would get between those of the progress

import wandb

PATIENCE = 20.0  # seconds to wait for a server at the start, for a login, and for uploads at the end
STEP = "trainer/global_step"  # the axis that Lightning gives all charts


class WandbTracker(WandbLogger):
    """Log a run to W&B, with its figures, and with its checkpoints if asked to.

    Offline its folder has one run of W&B, ``wandb/offline-run-…``. A run that resumes writes that anew under
    the same id, from ``steps.csv``: nothing stands there twice, and nothing is missing whatever was killed.
    Online W&B goes on with the run of that id, and drops by itself the steps that it has.

    Args:
        table: has all that is logged, and is logged to first.
        checkpoints: log best.ckpt and last.ckpt as an artifact when the run has finished.
    """

    def __init__(
        self, folder: RunFolder, table: StepTable, config: Mapping[str, Any], *, mode: str, checkpoints: bool
    ) -> None:
        _end_process()  # an earlier run's, which is left where W&B failed in it
        # W&B's process logs there, and makes a link to it in the run's folder, out of which none may lead.
        os.environ["WANDB_CACHE_DIR"] = str(folder.path)
        settings = wandb.Settings(
            console="off",
            reinit="create_new",  # else a run after one that W&B failed in would be logged as that one
            init_timeout=PATIENCE,
            login_timeout=PATIENCE,
            finish_timeout=PATIENCE,
            finish_timeout_raises=True,
        )
        super().__init__(
            name=run_name(folder, config),
            save_dir=folder.path,
            id=read_id(folder, "wandb") or new_id(folder),
            project=re.sub(r"[/\\#?%:]", "-", config["study"])[:128],
            group=sweep_name(folder, config),
            mode=mode,
            settings=settings,
        )
        self._wandb_init.pop("anonymous")  # Lightning's, of which W&B says that it has no effect
        self.folder, self.table, self.checkpoints = folder, table, checkpoints
        self._sent = 0  # of the table's entries

    def begin(self, config: Mapping[str, Any]) -> None:
        for old in self.folder.path.glob("wandb/offline-run-*"):
            shutil.rmtree(old)
        keep_id(self.folder, "wandb", str(self.version))
        self.experiment.config.update(dict(config), allow_val_change=True)
        atexit.register(_end_process)  # before W&B's own hook, which complains aloud if its process is gone
        for link in self.folder.path.glob("wandb/offline-run-*/logs/*"):
            if link.is_symlink():  # by its whole path, which ends when the folder is moved
                link.unlink()
        self.save()

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Wait for `save`: W&B takes steps in their order alone, and losses are read some steps later."""

    def add_image(self, name: str, pixels: np.ndarray, step: int = 0) -> None:
        """Wait for `end`, as a run that resumes writes all anew."""

    def save(self) -> None:
        new, self._sent = self.table.entries[self._sent :], len(self.table.entries)
        for step, values in by_step(new):
            self.experiment.log({**values, STEP: step}, step=step)

    def finalize(self, status: str) -> None:
        """Mark a run that ends early; training is followed by a test."""
        if status != "success":
            self.save()
            self._finish(exit_code=1)

    def end(self, summary: SummaryData, step: int) -> None:
        self.save()
        if figures := sorted(self.folder.figures.glob("*.png")):
            images = {f"figures/{path.stem}": wandb.Image(str(path)) for path in figures}
            self.experiment.log({**images, STEP: step}, step=step)
        kept = [path for path in (self.folder.best, self.folder.last) if path.exists()]
        if self.checkpoints and kept:
            artifact = wandb.Artifact(f"checkpoints-{self.version}", type="model")
            for path in kept:
                artifact.add_file(str(path), policy="immutable")  # where it lies: offline it is not copied
            self.experiment.log_artifact(artifact)
        self._finish(exit_code=0)

    def _finish(self, exit_code: int) -> None:
        self.experiment.finish(exit_code=exit_code)
        _end_process()


def _end_process() -> None:
    with contextlib.suppress(Exception, SystemExit):  # SystemExit: by W&B, where its process has failed
        wandb.teardown()
