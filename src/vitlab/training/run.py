"""One mechanism runs a job: `run(folder)`, whose whole input is the folder's ``config.yaml``."""

import contextlib
import functools
import logging
import os
import signal
import time
import traceback
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException

from vitlab.config import check_targets
from vitlab.core import hardware
from vitlab.core.checkpoint import read_checkpoint
from vitlab.core.console import RunConsole
from vitlab.core.cpu_count import count_cores
from vitlab.core.errors import UserError
from vitlab.core.processes import end_with_parent, rank_in_environment, start_ranks
from vitlab.core.provenance import find_commit, find_versions
from vitlab.core.run_folder import RunFolder, Summary, SummaryData
from vitlab.core.signals import Interrupted, StopSignal
from vitlab.data.datasets import Dataset
from vitlab.models.flops import count_parameters, count_trainable
from vitlab.training import report
from vitlab.training.build import build
from vitlab.training.callbacks import Throughput
from vitlab.training.grad_scaler import skipped_steps
from vitlab.training.instantiate import without_initial_weights
from vitlab.training.resume import Begun, complete
from vitlab.training.tensorboard import RunLogger
from vitlab.training.trainer import make_trainer


def run(folder: RunFolder, dataset: Dataset | None = None) -> SummaryData:
    """Train and test the run in ``folder``, from its last checkpoint if it has one; return its summary.

    Args:
        dataset: what ``config.yaml`` names, where it has been built already.

    Raises:
        UserError: it cannot run as configured, or training diverged.
        Interrupted: Ctrl-C or SIGTERM; a checkpoint is written.
    """
    started = time.monotonic()
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
        resumes = summary.data.get("device") is not None or folder.last.exists()
        if summary.data.get("status") == "finished":
            screen.print(f"{folder} is finished; there is nothing to go on with.")
            report.results(screen, folder, summary.data)
            return summary.data
        try:
            with complete(folder, config), plain_errors():
                kind = hardware.resolve_device_type(config["trainer"]["accelerator"])
                processes = hardware.count_processes(config["trainer"]["devices"], kind)
                threads = max(1, count_cores() // processes) if kind == "cpu" else 1
                world = int(os.environ.get("WORLD_SIZE", processes))
                if world != processes * config["trainer"]["num_nodes"]:
                    raise UserError(
                        f"{world} process(es) were started, but the run is configured for {processes} "
                        f"(trainer.devices) on each of {config['trainer']['num_nodes']} node(s) "
                        "(trainer.num_nodes). On one node set trainer=ddp trainer.devices=N; several nodes "
                        "need torchrun or SLURM to start the processes."
                    )
                if kind == "cpu" and processes > 1:
                    torch.set_num_threads(threads)
                summary.data.pop("error", None)  # of an attempt that failed
                summary.update(status="running", device=hardware.describe_device(kind))
                lost = functools.partial(summary.update, status="failed", error="a rank ended early")
                matmul = hardware.use_matmul_precision(config["matmul_precision"])
                with start_ranks(folder, processes, threads, lost), matmul:
                    _run(folder, config, processes, resumes, summary, screen, started, dataset)
        except (Interrupted, KeyboardInterrupt) as stop:
            if rank > 0:
                return summary.data
            summary.update(status="interrupted")
            screen.print(
                f"stopped at optimizer step {summary.data['train']['optimizer_steps']:,}; "
                f"go on with: python train.py resume={folder}"
            )
            raise Interrupted(signal.SIGINT) if isinstance(stop, KeyboardInterrupt) else stop from None
        except BaseException as error:
            summary.update(status="failed", error=str(error) or type(error).__name__)
            screen.log(traceback.format_exc())
            raise
    return summary.data


def _run(
    folder: RunFolder,
    config: dict[str, Any],
    processes: int,
    resumes: bool,
    summary: Summary,
    screen: RunConsole,
    started: float,
    dataset: Dataset | None,
) -> None:
    last = folder.last if folder.last.exists() else None
    begun = Begun.read(last) if last else None
    notes = begun.hold(folder, config) if begun else []
    if begun:  # the weights come from the run's own checkpoint; nothing is fetched twice
        config = without_initial_weights(config)
    job = build(config, processes, dataset)
    if begun:
        learned_from = job.teacher.record["sha256"] if job.teacher else None
        begun.hold_classes(job.dataset.classes)
        begun.hold_teacher(config["task"].get("teacher"), learned_from)
    step = begun.step if begun else 0
    resumed = [*summary.data["train"]["resumed_at"], *([step] if resumes else [])]
    name = config["model"].get("name") or config["choices"]["model"]
    model = {
        "name": name,
        "parameters": count_parameters(job.net),
        "trainable_parameters": count_trainable(job.net),
        "flops_per_image": job.flops,
    }
    summary.update(
        model=model,
        data={
            "name": job.dataset.name,
            "train": job.data.num_train,
            "val": job.data.num_val,
            "test": job.data.num_test,
        },
        train={"resumed_at": resumed},
        precision=job.precision,
        matmul_precision=config["matmul_precision"],
        compiled=job.compiled,
    )
    if job.teacher:
        summary.update(teacher=job.teacher.record)
    report.announce(screen, folder, job, model, processes, step if resumes else None)
    for note in notes:
        screen.print(f"note: {note}")
    if job.compiled:
        job.net.compile(dynamic=False)  # in place: the state's keys stay as they are
        if job.teacher:
            job.teacher.net.compile(dynamic=False)

    logger = (
        RunLogger(folder, purge_step=step if resumes else None) if config["logger"]["tensorboard"] else None
    )
    if logger:
        logger.begin(config | {"model": config["model"] | job.config["model"]})
    if config["callbacks"]["figures"] and not rank_in_environment():
        report.draw_augmentations(folder, job, logger)
        report.draw_learning_rate(folder, job, logger)
    throughput = Throughput(started)
    stop = StopSignal(screen.print)
    trainer, checkpointing = make_trainer(folder, job, processes, summary, screen, stop, throughput, logger)
    try:
        trainer.fit(job.task, datamodule=job.data, ckpt_path=last)
        if trainer.global_step < job.plan.total_steps:
            screen.print(f"note: ended early, at step {trainer.global_step:,} of {job.plan.total_steps:,}")
        if skipped := skipped_steps(trainer):
            screen.print(
                f"note: {skipped:,} of {trainer.global_step:,} optimizer steps were skipped: their float16 "
                "gradients overflowed. A few at the start are usual; trainer.precision=bf16-mixed has none."
            )
        best = checkpointing.best_metrics
        summary.update(
            train={"epochs": trainer.current_epoch, "optimizer_steps": trainer.global_step},
            metrics=best or {},
        )
        tested = "last checkpoint"
        if best and folder.best.exists():
            job.task.load_state_dict(read_checkpoint(folder.best)["state_dict"])
            tested = "best checkpoint by validation accuracy"
        if config["callbacks"]["ema"]["decay"] is not None:
            tested += ", EMA weights"
        # Once, after everything has been decided.
        measured = trainer.test(job.task, datamodule=job.data, verbose=False)
    except (Exception, SIGTERMException):  # Lightning's, of a SIGTERM before the first batch, is a SystemExit
        if stop.received is None:
            raise
        # Ctrl-C reaches the children too, and a compiler that dies of it looks like a fault.
        screen.log(traceback.format_exc())
        raise Interrupted(stop.received) from None
    finally:
        summary.update(
            train={
                "images_per_second": throughput.images_per_second,
                "wall_seconds": throughput.wall_seconds,
                "optimizer_steps": trainer.global_step,
                "skipped_steps": skipped_steps(trainer),  # of these, under 16-mixed
                "peak_memory_bytes": hardware.measure_peak_memory(job.kind),
            }
        )
    metrics = measured[0] if measured else {}
    if trainer.is_global_zero:
        if config["callbacks"]["figures"]:
            report.draw(folder, job, metrics, trainer.global_step)
        summary.update(
            metrics=metrics,
            tested=tested,
            train={"wall_seconds": throughput.wall_seconds},
            per_class=report.accuracy_per_class(job) if metrics else {},
            status="finished",
        )
        if logger:
            values = {
                f"hp/{s}_accuracy": summary.data["metrics"].get(f"{s}/accuracy") for s in ("val", "test")
            }
            values["hp/parameters"] = model["parameters"]
            values["hp/images_per_second"] = throughput.images_per_second
            logger.end(values, trainer.global_step)
        report.results(screen, folder, summary.data)


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
