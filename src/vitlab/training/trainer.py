"""Lightning's Trainer, put together for a run folder."""

from collections.abc import Sequence
from typing import Any, cast

import lightning as L
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import AdvancedProfiler, PyTorchProfiler, SimpleProfiler
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from vitlab.core.errors import UserError
from vitlab.training.build import Components
from vitlab.training.callbacks import (
    EMA,
    AtomicCheckpointIO,
    Checkpointing,
    Diagnostics,
    EarlyStopping,
    ProgressLine,
    Record,
    StepLoss,
)
from vitlab.training.grad_scaler import SkippedSteps, float16_plugin
from vitlab.training.lightning_internals import cluster_environment
from vitlab.training.session import Session
from vitlab.training.sharded_strategy import ShardedStrategy
from vitlab.training.trackers import Tracker

PROFILERS = {"simple": SimpleProfiler, "advanced": AdvancedProfiler, "pytorch": PyTorchProfiler}


def make_trainer(
    session: Session, parts: Components, trackers: Sequence[Tracker]
) -> tuple[L.Trainer, Checkpointing]:
    """Return Lightning's Trainer with the callbacks of a run.

    Raises:
        UserError: Lightning refuses the arguments.
    """
    options, folder = dict(parts.config["trainer"]), session.folder
    step_loss = StepLoss(folder)
    checkpointing = Checkpointing(
        folder=folder,
        stop=session.stop,
        every_minutes=parts.config["callbacks"]["checkpoint"]["every_minutes"],
        total_steps=parts.plan.total_steps,
        step_loss=step_loss,
        enabled=options["enable_checkpointing"] is not False and not options["fast_dev_run"],
    )
    record = Record(folder, session.summary, checkpointing, session.throughput, session.screen)
    callbacks: list[L.Callback] = [session.throughput, step_loss, record, checkpointing]
    if options["enable_progress_bar"] is not False:
        callbacks.insert(2, ProgressLine(session.screen, step_loss, parts.plan))
    if (ema := parts.config["callbacks"]["ema"])["decay"] is not None:
        callbacks.append(EMA(**ema))
    if (stopping := parts.config["callbacks"]["early_stopping"])["patience"] is not None:
        callbacks.append(EarlyStopping(**stopping))
    if parts.config["callbacks"]["diagnostics"]["every_epochs"] is not None:
        callbacks.append(Diagnostics(folder, session.summary, session.screen, parts))
    plugins: list[Any] = [AtomicCheckpointIO(), cluster_environment(parts.processes)]
    options["precision"] = parts.precision
    if parts.precision == "16-mixed":
        options["precision"] = None  # the plugin says it
        plugins.append(float16_plugin(parts.kind))
        callbacks.append(SkippedSteps())
    # Counted by us: see `Checkpointing.total_steps`.
    options |= {"max_steps": -1, "max_epochs": parts.plan.epochs, "enable_checkpointing": True}
    options["enable_progress_bar"] = False  # Lightning's; ours is a plain callback
    if options["strategy"] == "fsdp":  # by which Lightning means torch's first form
        options["strategy"] = ShardedStrategy(parts.processes * options["num_nodes"])
    if parts.kind == "cpu":
        options["devices"] = parts.processes  # Lightning takes no list and no -1 for CPUs
    if options["profiler"] is not None:
        options["profiler"] = PROFILERS[options["profiler"]](dirpath=folder.path, filename="profile")
    options["default_root_dir"] = options["default_root_dir"] or str(folder.path)
    if parts.data.num_val == 0:
        options["limit_val_batches"] = 0
    loggers = cast(list[Logger], [*trackers])
    try:
        trainer = L.Trainer(**options, callbacks=callbacks, logger=loggers or False, plugins=plugins)
    except (MisconfigurationException, ValueError, TypeError, ImportError, RuntimeError) as error:
        raise UserError(f"Lightning's Trainer refuses these arguments: {error}") from error
    return trainer, checkpointing
