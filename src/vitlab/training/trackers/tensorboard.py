"""TensorBoard, with an HParams tab that compares runs."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch.utils.tensorboard.summary import hparams

from vitlab.config import keys
from vitlab.config.labels import label
from vitlab.core.files import sync
from vitlab.core.run_folder import EVENTS, RunFolder
from vitlab.core.summary import SummaryData
from vitlab.training.trackers.identity import swept_keys
from vitlab.training.trackers.tracker import METRICS, final_values

# One fixed key set in every run, "-" where it has no such thing: TensorBoard takes one run's columns for all
# (tensorboard#3371). Keys that were swept come to it; `SWEPT` is for the columns of another sweep.
SWEPT = "swept"
HPARAMS = (
    *("data.batch_size", "data.image_size", "data.val_size"),
    *("model.patch_size", "model.dim", "model.depth", "model.heads", "model.mlp_ratio"),
    *("model.pool", "model.dropout", "model.drop_path"),
    *("optimizer.lr", "optimizer.weight_decay", "task.label_smoothing", "callbacks.ema.decay"),
    *("trainer.max_epochs", "trainer.accumulate_grad_batches", "seed"),
)
CHOICES = ("model", "model/tokenizer", "model/attention", "optimizer", "scheduler", "augment", "data")
# TensorBoard shows five columns at first, whether so many were swept or not: these are worth the room.
SHOWN, BESIDE = 5, ("model", "data", "optimizer.lr", "trainer.max_epochs")


class TensorBoardTracker(TensorBoardLogger):
    """Write TensorBoard events into the run folder itself, so a run is named by its path under ``outputs``.

    Args:
        purge_step: where a resumed run starts: TensorBoard then hides the events that it repeats.
    """

    def __init__(self, folder: RunFolder, purge_step: int | None) -> None:
        # Lightning's two minutes between flushes are what a kill -9 would lose.
        options: dict[str, Any] = {"purge_step": purge_step, "flush_secs": 10}
        super().__init__(folder.path, name="", version="", default_hp_metric=False, **options)

    @rank_zero_only
    def save(self) -> None:
        """Bring what was logged onto the disk; no hparams.yaml of Lightning's, since config.yaml says it."""
        self.experiment.flush()
        # A checkpoint follows, and what resumes from that does not log again what came before.
        folder = Path(self.log_dir)
        for path in (*folder.glob(f"{EVENTS}*"), folder):
            sync(path)

    def finalize(self, status: str) -> None:
        """Keep the file open between training and test: a second one would purge the first once more."""
        self.save()

    @rank_zero_only
    def add_image(self, name: str, pixels: np.ndarray, step: int = 0) -> None:
        """Show a figure, uint8 (H, W, 3), as soon as it is drawn."""
        self.experiment.add_image(name, pixels, step, dataformats="HWC")

    @rank_zero_only
    def begin(self, config: Mapping[str, Any]) -> None:
        """Announce the run's hyperparameters and the metrics that it will be compared by."""
        put_first(Path(self.log_dir))
        experiment, session, _ = hparams(flatten(config), dict.fromkeys(METRICS, 0.0))
        swept = swept_keys(config)
        shown = list(dict.fromkeys((SWEPT, *swept, *BESIDE)))[: max(SHOWN, 1 + len(swept))]
        content = experiment.value[0].metadata.plugin_data
        columns = HParamsPluginData.FromString(content.content)
        for info in columns.experiment.hparam_infos:
            info.differs = info.name in shown  # those come first, then the alphabet
        content.content = columns.SerializeToString()
        for summary in (experiment, session):
            self.experiment.file_writer.add_summary(summary)

    @rank_zero_only
    def end(self, summary: SummaryData, step: int) -> None:
        """Write the final values of ``METRICS``; one that was not measured is left out."""
        for name, value in final_values(summary).items():
            self.experiment.add_scalar(name, value, step)
        self.experiment.file_writer.add_summary(hparams({}, {})[2])
        self.save()


def put_first(folder: Path) -> None:
    """Rename the event files in `folder` where one that is made now would not be sorted after them.

    So it is where the clock was set back: curves would run backwards, and what is repeated be there twice.
    """
    there, now = sorted(folder.glob(f"{EVENTS}*")), int(time.time())
    for before, path in zip(range(len(there), 0, -1), there, strict=True):
        made, _, rest = path.name.removeprefix(EVENTS).partition(".")
        if made.isdigit() and int(made) > now - before:
            path.rename(folder / f"{EVENTS}{now - before:010d}.{rest}")


def flatten(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the hyperparameters as flat scalars: the choices, the fixed keys, and those that were swept."""
    flat: dict[str, Any] = {group: config["choices"].get(group, "-") for group in CHOICES}
    flat[SWEPT] = label(config.get("overrides", []), swept_keys(config)) or "-"
    for key in (*HPARAMS, *swept_keys(config)):
        if key not in flat:
            value = config["choices"].get(key) or keys.get(config, key)
            if not isinstance(value, bool | int | float | str):
                value = "-" if value is None else str(value)
            flat[key] = value
    return flat
