"""One mechanism runs a job: `run(folder)`, whose whole input is the folder's ``config.yaml``."""

import contextlib
import functools
import logging
import os
import signal
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException

from vitlab.config import check_targets
from vitlab.config.plan import Plan
from vitlab.core import hardware
from vitlab.core.checkpoint import read_checkpoint
from vitlab.core.console import RunConsole
from vitlab.core.cpu_count import count_cores
from vitlab.core.errors import Diverged, UserError
from vitlab.core.processes import end_with_parent, rank_in_environment, start_ranks
from vitlab.core.provenance import find_commit, find_versions
from vitlab.core.run_folder import ModelSummary, RunFolder, Summary, SummaryData
from vitlab.core.signals import Interrupted, StopSignal
from vitlab.data.datasets import Dataset
from vitlab.models.flops import count_parameters, count_trainable
from vitlab.training import figures
from vitlab.training.announce import announce, print_results
from vitlab.training.build import Components, build
from vitlab.training.callbacks import Checkpointing, Throughput
from vitlab.training.grad_scaler import skipped_steps
from vitlab.training.instantiate import without_initial_weights
from vitlab.training.resume import SavedRun, name_deleted_keys
from vitlab.training.tensorboard import RunLogger
from vitlab.training.trainer import make_trainer


@dataclass
class Session:
    """One process's work on a run, from its start or its last checkpoint on.

    Attributes:
        config: of the run, resolved.
        screen: the terminal and train.log.
        throughput: the clock, which started with the process.
        resumes: whether an earlier session began this run.
        processes: of the run.
    """

    folder: RunFolder
    config: dict[str, Any]
    summary: Summary
    screen: RunConsole
    throughput: Throughput
    resumes: bool
    processes: int = 1


def run(folder: RunFolder, dataset: Dataset | None = None, plan: Plan | None = None) -> SummaryData:
    """Train and test the run in ``folder``, from its last checkpoint if it has one; return its summary.

    Args:
        folder: of the run.
        dataset: what its config names, where it has been built already.
        plan: where it has been made already, for this dataset.

    Raises:
        UserError: it cannot run as configured, or training diverged.
        Interrupted: Ctrl-C or SIGTERM; a checkpoint is written.
    """
    throughput = Throughput(time.monotonic())
    config = folder.read_config()
    check_targets(config)
    rank = rank_in_environment() or 0
    end_with_parent()
    screen = RunConsole(folder, quiet=rank > 0)
    quieten()
    with folder.lock() if rank == 0 else contextlib.nullcontext():
        summary = Summary(folder, writable=rank == 0)
        if "train" not in summary.data:  # lost or damaged; the checkpoint knows the rest
            summary.begin(config["seed"], config["overrides"], find_versions(), find_commit())
        if summary.data.get("status") == "finished":
            screen.print(f"{folder} is already finished.")
            print_results(screen, folder, summary.data)
            return summary.data
        resumes = summary.data.get("device") is not None or folder.last.exists()
        session = Session(folder, config, summary, screen, throughput, resumes)
        try:
            with name_deleted_keys(folder, config), plain_errors(), use_devices(session):
                train_and_test(session, dataset, plan)
        except (Interrupted, KeyboardInterrupt) as stop:
            if rank > 0:
                return summary.data
            summary.update(status="interrupted")
            step = summary.data["train"]["optimizer_steps"]
            screen.print(f"stopped at optimizer step {step:,}; resume with: python train.py resume={folder}")
            raise Interrupted(signal.SIGINT) if isinstance(stop, KeyboardInterrupt) else stop from None
        except BaseException as error:
            summary.update(
                status="failed", error=str(error) or type(error).__name__, error_kind=_kind_of(error)
            )
            screen.log(traceback.format_exc())
            raise
    return summary.data


def _kind_of(error: BaseException) -> str:
    """Return the ``error_kind`` of summary.json, see `SummaryData`."""
    if isinstance(error, Diverged):
        return "diverged"
    return "user" if isinstance(error, UserError) else "fault"


@contextlib.contextmanager
def use_devices(session: Session) -> Iterator[None]:
    """Start the other processes of the run, share out the CPU's cores, and note the device.

    Raises:
        UserError: the device is not there, or other processes were started than are configured.
    """
    config, summary, trainer = session.config, session.summary, session.config["trainer"]
    kind = hardware.resolve_device_type(trainer["accelerator"])
    processes = hardware.count_processes(trainer["devices"], kind)
    world = int(os.environ.get("WORLD_SIZE", processes))
    if world != processes * trainer["num_nodes"]:
        raise UserError(
            f"{world} process(es) were started, but the run is configured for {processes} "
            f"(trainer.devices) on each of {trainer['num_nodes']} node(s) (trainer.num_nodes). On one node "
            "set trainer=ddp trainer.devices=N; several nodes need torchrun or SLURM to start the processes."
        )
    threads = max(1, count_cores() // processes) if kind == "cpu" else 1
    if kind == "cpu" and processes > 1:
        torch.set_num_threads(threads)
    for key in ("error", "error_kind"):  # of an attempt that failed
        summary.data.pop(key, None)  # type: ignore[misc]
    summary.update(status="running", device=hardware.describe_device(kind))
    session.processes = processes
    on_loss = functools.partial(
        summary.update, status="failed", error="a rank ended early", error_kind="rank"
    )
    with (
        start_ranks(session.folder, processes, threads, on_loss),
        hardware.use_matmul_precision(config["matmul_precision"]),
    ):
        yield


def train_and_test(session: Session, dataset: Dataset | None, plan: Plan | None) -> None:
    """Build the run, train it to its end, test its best weights, and leave its figures and summary."""
    folder, config, screen = session.folder, session.config, session.screen
    saved = SavedRun.read(folder.last) if folder.last.exists() else None
    notes = saved.check_config(folder, config) if saved else []
    parts = build_run(session, saved, dataset, plan)
    resumed_at = (saved.step if saved else 0) if session.resumes else None
    model = record_run(session, parts, resumed_at)
    announce(screen, folder, parts, model, session.processes, resumed_at)
    for note in notes:
        screen.print(f"note: {note}")
    if parts.compiled:
        parts.compile()
    logger = RunLogger(folder, purge_step=resumed_at) if config["logger"]["tensorboard"] else None
    if logger:
        logger.begin(config | {"model": config["model"] | parts.config["model"]})
    if config["callbacks"]["figures"] and not rank_in_environment():
        figures.draw_augmentations(folder, parts, logger)
        figures.draw_learning_rate(folder, parts, logger)
    stop = StopSignal(screen.print)
    trainer, checkpointing = make_trainer(
        folder, parts, session.processes, session.summary, screen, stop, session.throughput, logger
    )
    with record_cost(session, trainer, parts.kind), stop_between_steps(stop, screen):
        train(session, trainer, parts, checkpointing, folder.last if saved else None)
        tested = load_best(session, parts, checkpointing)
        measured = trainer.test(parts.task, datamodule=parts.data, verbose=False)
    if trainer.is_global_zero:
        finish(session, trainer, parts, tested, measured[0] if measured else {})
        if logger:
            logger.end(session.summary.data, trainer.global_step)
        print_results(screen, folder, session.summary.data)


def build_run(
    session: Session, saved: SavedRun | None, dataset: Dataset | None, plan: Plan | None
) -> Components:
    """Build what the run consists of; for one that resumes, check that it is what it was."""
    config = session.config
    if saved is None:
        return build(config, session.processes, dataset, plan)
    # The weights come from the run's own checkpoint; nothing is fetched twice.
    parts = build(without_initial_weights(config), session.processes, dataset, plan)
    saved.check_classes(parts.dataset.classes)
    saved.check_teacher(
        config["task"].get("teacher"), parts.teacher.record["sha256"] if parts.teacher else None
    )
    return parts


def record_run(session: Session, parts: Components, resumed_at: int | None) -> ModelSummary:
    """Write what is about to run into the summary; return what it says of the network."""
    config, summary = parts.config, session.summary
    model: ModelSummary = {
        "name": config["model"].get("name") or config["choices"]["model"],
        "parameters": count_parameters(parts.net),
        "trainable_parameters": count_trainable(parts.net),
        "flops_per_image": parts.flops,
    }
    data = parts.data
    resumes = [*summary.data["train"]["resumed_at"], *([] if resumed_at is None else [resumed_at])]
    summary.update(
        model=model,
        data={
            "name": parts.dataset.name,
            "train": data.num_train,
            "val": data.num_val,
            "test": data.num_test,
        },
        train={"resumed_at": resumes},
        precision=parts.precision,
        matmul_precision=config["matmul_precision"],
        compiled=parts.compiled,
    )
    if parts.teacher:
        summary.update(teacher=parts.teacher.record)
    return model


def train(
    session: Session, trainer: L.Trainer, parts: Components, checkpointing: Checkpointing, last: Path | None
) -> None:
    """Train to the end of the plan, from the checkpoint ``last`` if there is one."""
    trainer.fit(parts.task, datamodule=parts.data, ckpt_path=last)
    if trainer.global_step < parts.plan.total_steps:
        session.screen.print(
            f"note: ended early, at step {trainer.global_step:,} of {parts.plan.total_steps:,}"
        )
    if skipped := skipped_steps(trainer):
        session.screen.print(
            f"note: {skipped:,} of {trainer.global_step:,} optimizer steps were skipped: their float16 "
            "gradients overflowed. A few at the start are usual; trainer.precision=bf16-mixed has none."
        )
    session.summary.update(
        train={"epochs": trainer.current_epoch, "optimizer_steps": trainer.global_step},
        metrics=checkpointing.best_metrics or {},
    )


def load_best(session: Session, parts: Components, checkpointing: Checkpointing) -> str:
    """Load the weights that are to be tested, and say which they are."""
    tested, best = "last checkpoint", session.folder.best
    if checkpointing.best_metrics and best.exists():
        parts.task.load_state_dict(read_checkpoint(best)["state_dict"])
        tested = "best checkpoint by validation accuracy"
    averaged = session.config["callbacks"]["ema"]["decay"] is not None
    return tested + (", EMA weights" if averaged else "")


def finish(
    session: Session, trainer: L.Trainer, parts: Components, tested: str, metrics: Mapping[str, float]
) -> None:
    """Draw the results, and complete the summary."""
    if session.config["callbacks"]["figures"]:
        figures.draw_results(session.folder, parts, metrics, trainer.global_step)
    session.summary.update(
        metrics=dict(metrics),
        tested=tested,
        train={"wall_seconds": session.throughput.wall_seconds},
        per_class=accuracy_per_class(parts) if metrics else {},
        status="finished",
    )


def accuracy_per_class(parts: Components) -> dict[str, float]:
    """Return the test accuracy of each class, 0..1."""
    counts = parts.task.confusion_counts  # (K, K)
    share = counts.diagonal() / counts.sum(1).clamp(min=1)
    return dict(zip(parts.data.classes, share.tolist(), strict=True))


@contextlib.contextmanager
def record_cost(session: Session, trainer: L.Trainer, kind: str) -> Iterator[None]:
    """Write what the training cost into the summary, however it ends."""
    try:
        yield
    finally:
        session.summary.update(
            train={
                "images_per_second": session.throughput.images_per_second,
                "wall_seconds": session.throughput.wall_seconds,
                "optimizer_steps": trainer.global_step,
                "skipped_steps": skipped_steps(trainer),  # of these, under 16-mixed
                "peak_memory_bytes": hardware.measure_peak_memory(kind),
            }
        )


@contextlib.contextmanager
def stop_between_steps(stop: StopSignal, screen: RunConsole) -> Iterator[None]:
    """Turn what fails after a signal came into `Interrupted`.

    Ctrl-C reaches the children too, and a compiler that dies of it looks like a fault.
    """
    try:
        yield
    except (Exception, SIGTERMException):  # Lightning's, of a SIGTERM before the first batch, is a SystemExit
        if stop.received is None:
            raise
        screen.log(traceback.format_exc())
        raise Interrupted(stop.received) from None


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """Say in plain words what people run into that is no bug."""
    try:
        yield
    except MisconfigurationException as error:
        raise UserError(f"Lightning refuses this: {error}") from error
    except torch.OutOfMemoryError as error:
        raise UserError(
            "the device ran out of memory. Halve data.batch_size and double "
            f"trainer.accumulate_grad_batches, which trains the same. ({str(error).splitlines()[0]})"
        ) from error
    except OSError as error:
        if error.errno == 28:
            raise UserError(f"the disk is full: {error}. Free some space, then resume this run.") from error
        raise


def quieten() -> None:
    """Silence what Lightning says to people who configure it by hand."""
    # torch.compile looks for CUDA's compiler and warns on machines without a GPU.
    for name in ("lightning.pytorch", "lightning.fabric", "torch.utils.cpp_extension"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for text in (".*does not have many workers.*", ".*is smaller than the logging interval.*"):
        warnings.filterwarnings("ignore", text)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"lightning.*|torchmetrics.*")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"lightning.*")
