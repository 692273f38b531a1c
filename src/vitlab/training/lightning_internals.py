"""What is read of Lightning, or changed in it, that it does not promise: the one place to look at an upgrade.

As in lightning 2.6.6. Its checkpoints restore the counters; they are public, but not documented, since 1.5.
"""

import os
import traceback

import lightning as L
from lightning.fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)

from vitlab.core.slurm import count_tasks


def cluster_environment(processes: int = 1) -> ClusterEnvironment:
    """Return who has started the ranks: torchrun, SLURM by ``srun``, or vitlab itself.

    Lightning takes every process with a SLURM_NTASKS for one of so many ranks, a batch script and a job of a
    sweep too. Its requeueing, which would save where a step may be half done, is off: see
    `vitlab.core.slurm.requeue`.

    Args:
        processes: ranks on each node, which `vitlab.core.slurm.check_tasks` has held against SLURM's.
    """
    if TorchElasticEnvironment.detect():
        return TorchElasticEnvironment()
    if count_tasks() == 1:
        return LightningEnvironment()
    os.environ["SLURM_NTASKS_PER_NODE"] = str(processes)  # it insists, where --ntasks says the same
    return SLURMEnvironment(auto_requeue=False)


def skip_sigterm_broadcast(trainer: L.Trainer) -> None:
    """Leave out the broadcast by which the ranks tell each other of a SIGTERM (new in 2.6).

    It comes from the device at every batch, and waits for the answer; with our own signal handlers it is
    always no.
    """
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]


def batches_done_in_epoch(trainer: L.Trainer) -> int:
    """Return the micro-batches of the current epoch that training has begun with."""
    return trainer.fit_loop.epoch_loop.batch_progress.current.ready


def batches_done(trainer: L.Trainer) -> int:
    """Return the micro-batches of the whole run, the current one included."""
    return trainer.fit_loop.total_batch_idx + 1


def is_last_batch(trainer: L.Trainer) -> bool:
    """Say whether the current micro-batch is the last of its epoch."""
    return trainer.fit_loop.epoch_loop.batch_progress.is_last_batch


def is_restoring(error: BaseException) -> bool:
    """Say whether an error comes from what Lightning restores out of a checkpoint."""
    frames = (frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(
        code.co_filename.endswith("checkpoint_connector.py")
        and code.co_name.startswith(("restore", "resume", "_restore"))
        for code in frames
    )
