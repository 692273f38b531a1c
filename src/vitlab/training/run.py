"""One mechanism runs a job: `run(folder)`, whose whole input is the folder's ``config.yaml``."""

import contextlib
import functools
import logging
import os
import signal
import threading
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException

from vitlab.config import read_record
from vitlab.config.plan import Plan
from vitlab.core import hardware, slurm
from vitlab.core.checkpoint import check_fits, read_checkpoint
from vitlab.core.console import RunConsole
from vitlab.core.cpu_count import count_cores
from vitlab.core.disk import as_note, describe_room, disk_problem
from vitlab.core.errors import Diverged, UserError
from vitlab.core.files import check_links
from vitlab.core.processes import rank_in_environment, start_ranks
from vitlab.core.provenance import find_commit, find_versions
from vitlab.core.run_folder import RunFolder
from vitlab.core.signals import Interrupted, StopSignal
from vitlab.core.summary import Summary, SummaryData
from vitlab.data.datasets import Dataset
from vitlab.models.flops import count_parameters, count_trainable
from vitlab.models.sharding import gather, load_weights
from vitlab.training import figures
from vitlab.training.announce import announce, print_results
from vitlab.training.build import Components, build
from vitlab.training.callbacks import Throughput
from vitlab.training.faults import explain_faults, plain_errors
from vitlab.training.grad_scaler import skipped_steps
from vitlab.training.instantiate import without_initial_weights
from vitlab.training.lightning_internals import is_restoring
from vitlab.training.resume import SavedRun, name_deleted_keys
from vitlab.training.session import Session
from vitlab.training.trackers import Tracker, build_trackers
from vitlab.training.trainer import make_trainer


def run(folder: RunFolder, dataset: Dataset | None = None, plan: Plan | None = None) -> SummaryData:
    """Train and test the run in ``folder``, from its last checkpoint if it has one; return its summary.

    Args:
        dataset: what its config names, where it has been built already.
        plan: where it has been made already, for this dataset.

    Raises:
        UserError: it cannot run as configured, or training diverged.
        Interrupted: a signal asked the run to stop; a checkpoint is written.
    """
    throughput = Throughput(time.monotonic())
    config = read_record(folder)
    check_links(folder.path)
    rank = rank_in_environment() or 0
    screen = RunConsole(folder, quiet=rank > 0)
    quieten()
    with folder.lock() if rank == 0 else contextlib.nullcontext():
        if rank == 0:
            folder.remove_leftovers()
        summary = Summary(folder.summary, writable=rank == 0)
        if "train" not in summary.data:  # lost or damaged; the checkpoint knows the rest
            summary.begin(config["seed"], config["overrides"], find_versions(), find_commit())
        if summary.data.get("status") == "finished":
            screen.print(f"{folder} is already finished.")
            print_results(screen, folder, summary.data)
            return summary.data
        begun = summary.data.get("device") is not None
        if begun and summary.data.get("status") == "running":  # nobody trains here: the folder was not locked
            screen.print(
                "note: the last attempt was killed, by hand or where power or memory ran out (dmesg)"
            )
        try:
            with (
                name_deleted_keys(folder, config),
                disk_errors(folder),
                plain_errors(),
                use_devices(folder, config, summary),
            ):
                saved = SavedRun.find(folder, screen.print)
                resumed_at = saved.step if saved else (0 if begun else None)
                session = Session(folder, summary, screen, StopSignal(screen.print), throughput, resumed_at)
                parts = prepare(session, config, saved, dataset, plan)
                train_and_test(session, parts, saved.path if saved else None)
        except (Interrupted, KeyboardInterrupt) as stopped:
            if rank > 0:
                return summary.data
            summary.update(status="interrupted")
            step = summary.data["train"]["optimizer_steps"]
            screen.print(f"stopped at optimizer step {step:,}; resume with: {folder.resume_command}")
            if isinstance(stopped, KeyboardInterrupt):
                raise Interrupted(signal.SIGINT) from None
            if said := slurm.requeue(config, stopped.signum):
                screen.print(said)
            raise
        except BaseException as error:
            if rank > 0 and isinstance(error, Diverged):  # all ranks have, and rank 0 says it
                return summary.data
            kind = "user" if isinstance(error, UserError) else "fault"
            kind = "diverged" if isinstance(error, Diverged) else kind
            screen.log(traceback.format_exc())
            with contextlib.suppress(OSError):  # a disk that takes nothing: the error itself is to be seen
                summary.update(status="failed", error=str(error) or type(error).__name__, error_kind=kind)
            raise
    return summary.data


@contextlib.contextmanager
def use_devices(folder: RunFolder, config: dict[str, Any], summary: Summary) -> Iterator[None]:
    """Start the other processes of the run, share out the CPU's cores, and note the device.

    Raises:
        UserError: the device is not there, or other processes were started than are configured.
    """
    trainer = config["trainer"]
    kind = hardware.resolve_device_type(trainer["accelerator"])
    processes = hardware.count_processes(trainer["devices"], kind)
    slurm.check_tasks(processes, trainer["num_nodes"])
    world = int(os.environ.get("WORLD_SIZE", max(processes, slurm.count_tasks())))
    if world != processes * trainer["num_nodes"]:
        raise UserError(
            f"{world} process(es) were started, but the run is configured for {processes} "
            f"(trainer.devices) on each of {trainer['num_nodes']} node(s) (trainer.num_nodes). On one node "
            "set trainer=ddp trainer.devices=N; several nodes need torchrun or SLURM to start the processes."
        )
    apart = slurm.count_tasks() > 1 and "SLURM_CPUS_PER_TASK" in os.environ  # each rank has cores of its own
    threads = max(1, count_cores() // (1 if apart else processes)) if kind == "cpu" else 1
    if kind == "cpu":
        hardware.keep_freed_memory()
        if processes > 1:
            torch.set_num_threads(threads)
    for key in ("error", "error_kind"):  # of an attempt that failed
        summary.data.pop(key, None)  # type: ignore[misc]
    summary.update(status="running", device=hardware.describe_device(kind))
    on_loss = functools.partial(
        summary.update, status="failed", error="a rank ended early", error_kind="rank"
    )
    with (
        start_ranks(folder, processes, threads, on_loss),
        hardware.use_matmul_precision(config["matmul_precision"]),
    ):
        yield


def prepare(
    session: Session,
    config: dict[str, Any],
    saved: SavedRun | None,
    dataset: Dataset | None,
    plan: Plan | None,
) -> Components:
    """Build what is about to run, put it into the summary, and announce it.

    Raises:
        UserError: it cannot be built, or a run that resumes is no longer what it was.
    """
    folder, summary = session.folder, session.summary
    notes = []
    if saved is None:
        parts = build(config, dataset, plan)
    else:
        notes = saved.check_config(folder, config)
        # The weights come from the run's own checkpoint; nothing is fetched twice.
        parts = build(without_initial_weights(config), dataset, plan)
        saved.check_parts(parts)
    data = parts.data
    resumes = [] if session.resumed_at is None else [session.resumed_at]
    summary.update(
        model={
            "name": config["model"].get("name") or config["choices"]["model"],
            "parameters": count_parameters(parts.net),
            "trainable_parameters": count_trainable(parts.net),
            "flops_per_image": parts.flops,
        },
        data={
            "name": parts.dataset.name,
            "train": data.num_train,
            "val": data.num_val,
            "test": data.num_test,
            "fingerprint": parts.task.meta.get("images"),
        },
        train={"resumed_at": [*summary.data["train"]["resumed_at"], *resumes]},
        precision=parts.precision,
        matmul_precision=config["matmul_precision"],
        compiled=parts.compiled,
    )
    if parts.teacher:
        summary.update(teacher=parts.teacher.record)
    announce(session, parts)
    for note in notes:
        session.screen.print(f"note: {note}")
    return parts


def train_and_test(session: Session, parts: Components, last: Path | None) -> None:
    """Train to the end of the plan, from the checkpoint ``last`` if there is one; test the best weights."""
    folder, summary, screen, config = session.folder, session.summary, session.screen, parts.config
    if parts.compiled:
        parts.compile()
    trackers = build_trackers(folder, config, session.resumed_at, screen.print)
    trainer, checkpointing = make_trainer(session, parts, trackers)
    for tracker in trackers:
        tracker.begin(config)
    if config["callbacks"]["figures"] and not rank_in_environment():
        with as_note(screen.print, "figures"):
            figures.draw_augmentations(folder, parts, trackers)
            figures.draw_learning_rate(folder, parts, trackers)
    try:
        with explain_faults(folder, parts, lambda: trainer.global_step):
            trainer.fit(parts.task, datamodule=parts.data, ckpt_path=last)
            note_skipped(screen, trainer, parts.plan)
            best = checkpointing.best_metrics or {}
            summary.update(
                train={"epochs": trainer.current_epoch, "optimizer_steps": trainer.global_step}, metrics=best
            )
            tested = load_best(folder, parts) if best else "last checkpoint"
            tested += ", EMA weights" if config["callbacks"]["ema"]["decay"] is not None else ""
            measured = trainer.test(parts.task, datamodule=parts.data, verbose=False)
            gather(parts.net)  # for the figures, which one process draws alone
    except (Exception, SIGTERMException) as error:  # Lightning's, of an early SIGTERM, is a SystemExit
        # Ctrl-C reaches the children too, and a compiler that dies of it looks like a fault.
        if session.stop.received is None:
            if last and is_restoring(error) and not isinstance(error, (UserError, torch.OutOfMemoryError)):
                said = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
                raise UserError(
                    f"{last} cannot be resumed from: Lightning finds in it what it does not expect ({said}). "
                    "It was changed, or another version wrote it."
                ) from error
            raise
        screen.log(traceback.format_exc())
        raise Interrupted(session.stop.received) from None
    finally:
        reached: dict[str, Any] = {
            "images_per_second": session.throughput.images_per_second,
            "wall_seconds": session.throughput.wall_seconds,
            "optimizer_steps": trainer.global_step,
        }
        with contextlib.suppress(OSError, RuntimeError):  # of a GPU that has failed and answers no more
            reached |= {
                "skipped_steps": skipped_steps(trainer),  # of these, under 16-mixed
                "peak_memory_bytes": hardware.measure_peak_memory(parts.kind),
            }
        with contextlib.suppress(OSError):  # what was refused first says more; `finish` writes it all again
            summary.update(train=reached)
    if trainer.is_global_zero:
        finish(session, parts, tested, measured[0] if measured else {}, trackers)
        print_results(screen, folder, summary.data)


def note_skipped(screen: RunConsole, trainer: L.Trainer, plan: Plan) -> None:
    """Say which optimizer steps of the plan were not made, or had no effect."""
    steps, skipped = trainer.global_step, skipped_steps(trainer)
    if steps < plan.total_steps:
        screen.print(f"note: ended early, at step {steps:,} of {plan.total_steps:,}")
    if skipped:
        screen.print(
            f"note: {skipped:,} of {steps:,} optimizer steps were skipped: their float16 gradients "
            "overflowed. A few at the start are usual; trainer.precision=bf16-mixed has none."
        )


def load_best(folder: RunFolder, parts: Components) -> str:
    """Load the weights of the best epoch, where they were kept, and say which are loaded now."""
    if not folder.best.exists():
        return "last checkpoint"
    weights = read_checkpoint(folder.best)["state_dict"]
    check_fits(parts.task, weights, folder.best)
    load_weights(parts.task, weights)
    return "best checkpoint by validation accuracy"


def finish(
    session: Session,
    parts: Components,
    tested: str,
    metrics: Mapping[str, float],
    trackers: Sequence[Tracker],
) -> None:
    """Draw the results, and complete the summary; only when all else is on the disk is the run finished."""
    steps = session.summary.data["train"]["optimizer_steps"]
    if parts.config["callbacks"]["figures"]:
        with as_note(session.screen.print, "figures"):
            figures.draw_results(session.folder, parts, metrics, steps)
    per_class = {}  # test accuracy, 0..1
    if metrics:
        counts = parts.task.confusion_counts  # (K, K)
        share = counts.diagonal() / counts.sum(1).clamp(min=1)
        per_class = dict(zip(parts.data.classes, share.tolist(), strict=True))
    session.summary.update(
        metrics=dict(metrics),
        tested=tested,
        train={"wall_seconds": session.throughput.wall_seconds},
        per_class=per_class,
    )
    for tracker in trackers:
        tracker.end(session.summary.data, steps)
    session.summary.update(status="finished")


@contextlib.contextmanager
def disk_errors(folder: RunFolder) -> Iterator[None]:
    """Say what the disk refused, and how the run goes on when that is mended."""
    try:
        yield
    except Exception as error:
        if not (problem := disk_problem(error)):
            raise
        said = str(error) if isinstance(error, UserError) else f"{problem} ({describe_room(folder.path)})."
        raise UserError(
            f"{said} Nothing that was saved is lost; mend that, then: {folder.resume_command}"
        ) from error


def quieten() -> None:
    """Silence what Lightning says to people who configure it by hand."""
    # torch.compile looks for CUDA's compiler and warns on machines without a GPU.
    for name in ("lightning.pytorch", "lightning.fabric", "torch.utils.cpp_extension"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for text in (".*does not have many workers.*", ".*is smaller than the logging interval.*"):
        warnings.filterwarnings("ignore", text)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"lightning.*|torchmetrics.*")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"lightning.*")
    threading.excepthook = _print_unless_of_disk


def _print_unless_of_disk(args: threading.ExceptHookArgs) -> None:
    # TensorBoard's writer raises it again where the next event is logged.
    if not disk_problem(args.exc_value):
        threading.__excepthook__(args)
