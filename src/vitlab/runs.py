"""One mechanism runs a job: `run(folder)`, whose whole input is the folder's ``config.yaml``."""

import contextlib
import functools
import logging
import os
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import lightning as L
import torch

from vitlab import hardware, plots, report
from vitlab.build import Job, build
from vitlab.callbacks import (
    AtomicCheckpointIO,
    Checkpointing,
    ProgressLine,
    Record,
    StepLoss,
    Throughput,
)
from vitlab.callbacks.checkpointing import read_checkpoint
from vitlab.callbacks.record import read_metrics
from vitlab.config import check_targets
from vitlab.errors import UserError
from vitlab.folder import RunFolder, Summary
from vitlab.logger import RunLogger
from vitlab.models.cost import count_parameters
from vitlab.processes import Interrupted, StopSignal, rank_in_environment, ranks, watch_parent
from vitlab.report import Screen


def run(folder: RunFolder) -> dict[str, Any]:
    """Train and test the run in ``folder``, from its last checkpoint if it has one; return its summary.

    Raises:
        UserError: it cannot run as configured, or training diverged.
        Interrupted: Ctrl-C or SIGTERM; a checkpoint is written.
    """
    started = time.monotonic()
    config = folder.read_config()
    check_targets(config)
    rank = rank_in_environment() or 0
    watch_parent()
    screen = Screen(folder, quiet=rank > 0)
    _quieten()
    with folder.lock() if rank == 0 else contextlib.nullcontext():
        summary = Summary(folder, writable=rank == 0)
        resumes = summary.data.get("device") is not None
        if summary.data.get("status") == "finished":
            screen.print(f"{folder} is finished; there is nothing to go on with.")
            report.results(screen, folder, summary.data)
            return summary.data
        try:
            with _plain_errors():
                kind = hardware.device_type(config["trainer"]["accelerator"])
                processes = hardware.num_processes(config["trainer"]["devices"], kind)
                threads = max(1, (os.cpu_count() or 1) // processes) if kind == "cpu" else 1
                world = int(os.environ.get("WORLD_SIZE", processes))
                if world != processes * config["trainer"]["num_nodes"]:
                    raise UserError(
                        f"{world} processes were started, but the run is configured for "
                        f"{processes} (trainer.devices) × {config['trainer']['num_nodes']} "
                        "(trainer.num_nodes). Give trainer=ddp trainer.devices=N."
                    )
                if kind == "cpu" and processes > 1:
                    torch.set_num_threads(threads)
                summary.update(status="running", device=hardware.device_name(kind))
                lost = functools.partial(summary.update, status="failed", error="a rank ended early")
                with ranks(folder, processes, threads, lost):
                    _run(folder, config, processes, resumes, summary, screen, started)
        except Interrupted:
            if rank > 0:
                return summary.data
            summary.update(status="interrupted")
            screen.print(
                f"stopped at optimizer step {summary.data['train']['optimizer_steps']:,}; "
                f"go on with: python train.py resume={folder}"
            )
            raise
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
    screen: Screen,
    started: float,
) -> None:
    last = folder.checkpoint()
    if last and "pretrained" in config["model"]:
        # The weights come from the run's own checkpoint; nothing is fetched twice.
        config = config | {"model": config["model"] | {"pretrained": False, "checkpoint_path": None}}
    job = build(config, processes)
    step = read_checkpoint(last)["global_step"] if last else 0
    resumed = [*summary.data["train"]["resumed_at"], *([step] if resumes else [])]
    name = config["model"].get("name") or config["choices"]["model"]
    model = {"name": name, "parameters": count_parameters(job.net), "flops_per_image": job.flops}
    summary.update(model=model, train={"resumed_at": resumed}, precision=job.precision, compiled=job.compiled)
    _announce(screen, folder, job, model, processes, step if resumes else None)
    if job.compiled:
        job.net.compile(dynamic=False)  # in place: the state's keys stay as they are

    logger = (
        RunLogger(folder, purge_step=step if resumes else None) if config["logger"]["tensorboard"] else None
    )
    if logger:
        logger.begin(config | {"model": config["model"] | job.config["model"]})
    throughput = Throughput(started)
    stop = StopSignal(screen.print)
    stop.install()
    trainer, checkpointing = _trainer(folder, job, summary, screen, stop, throughput, logger)
    try:
        trainer.fit(job.task, datamodule=job.data, ckpt_path=last)
        best = checkpointing.best_metrics
        summary.update(
            train={"epochs": trainer.current_epoch, "optimizer_steps": trainer.global_step},
            metrics=best or {},
        )
        tested = "last checkpoint"
        if best and folder.best.exists():
            job.task.load_state_dict(read_checkpoint(folder.best)["state_dict"])
            tested = "best checkpoint by validation accuracy"
        # Once, after everything has been decided.
        measured = trainer.test(job.task, datamodule=job.data, verbose=False)
    finally:
        summary.update(
            train={
                "images_per_second": throughput.images_per_second,
                "wall_seconds": throughput.wall_seconds,
                "optimizer_steps": trainer.global_step,
            }
        )
    metrics = measured[0] if measured else {}
    if trainer.is_global_zero:
        if config["callbacks"]["figures"]:
            _draw(folder, job, metrics, trainer.global_step)
        summary.update(
            metrics=metrics,
            tested=tested,
            train={"wall_seconds": throughput.wall_seconds},
            per_class=_per_class(job) if metrics else {},
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


def _trainer(
    folder: RunFolder,
    job: Job,
    summary: Summary,
    screen: Screen,
    stop: StopSignal,
    throughput: Throughput,
    logger: RunLogger | None,
) -> tuple[L.Trainer, Checkpointing]:
    options = dict(job.config["trainer"])
    checkpointing = Checkpointing(
        folder=folder,
        stop=stop,
        every_minutes=job.config["callbacks"]["checkpoint"]["every_minutes"],
        total_steps=job.plan.total_steps,
        enabled=options["enable_checkpointing"] is not False and not options["fast_dev_run"],
    )
    step_loss = StepLoss()
    callbacks: list[L.Callback] = [
        throughput,
        step_loss,
        Record(folder, summary, checkpointing),
        checkpointing,
    ]
    if options["enable_progress_bar"] is not False:
        progress = ProgressLine(
            screen=screen,
            step_loss=step_loss,
            total_batches=job.plan.epochs * job.plan.batches_per_epoch,
            batches_per_epoch=job.plan.batches_per_epoch,
        )
        callbacks.insert(2, progress)
    # Counted by us: see `Checkpointing.total_steps`.
    options |= {"max_steps": -1, "max_epochs": job.plan.epochs, "precision": job.precision}
    options["enable_checkpointing"] = True
    options["default_root_dir"] = options["default_root_dir"] or str(folder.path)
    if job.data.num_val == 0:
        options["limit_val_batches"] = 0
    return L.Trainer(
        **options, callbacks=callbacks, logger=logger or False, plugins=[AtomicCheckpointIO()]
    ), checkpointing


def _announce(
    screen: Screen,
    folder: RunFolder,
    job: Job,
    model: dict[str, Any],
    processes: int,
    step: int | None,
) -> None:
    data, plan, config = job.data, job.plan, job.config
    sizes = (
        f"{data.num_train:,} train, {data.num_val:,} val, {data.num_test:,} test; {len(data.classes)} classes"
    )
    batch = f"{plan.effective_batch} = {plan.batch_size} × {plan.accumulate} accumulated"
    if processes > 1:
        batch += f", split over {processes} processes"
    asked = "" if config["compile"] != "auto" else " (auto)"
    lines = [
        ("run", str(folder) + (f"  resumed at step {step:,}" if step is not None else "")),
        (
            "model",
            f"{model['name']}  {model['parameters']:,} parameters, {job.flops / 1e6:,.0f} MFLOPs "
            "an image (forward)",
        ),
        ("data", f"{job.source.name}  {sizes}"),
        ("effective batch", batch),
        (
            "schedule",
            f"{plan.total_steps:,} optimizer steps in {plan.epochs} epochs, {plan.warmup_steps:,} warmup; "
            f"{config['choices']['optimizer']}, peak learning rate {config['optimizer']['lr']:g}",
        ),
        (
            "device",
            f"{hardware.device_name(job.kind)}; {job.precision}; compile {job.compiled}{asked}".lower(),
        ),
    ]
    report.describe(screen, lines)
    for note in [*job.source.notes, *filter(None, [plan.advice()])]:
        screen.print(f"note: {note}")


def _draw(folder: RunFolder, job: Job, metrics: Mapping[str, float], steps: int) -> None:
    plan, config = job.plan, job.config
    title = f"{config['choices']['model']} on {job.source.name}, seed {config['seed']}"
    per_epoch = plan.total_steps / plan.epochs
    rate = [
        ((s + 1) / per_epoch, config["optimizer"]["lr"] * job.task.schedule(s, plan.total_steps))
        for s in range(0, steps, max(1, steps // 500))
    ]
    report.save(plots.history(read_metrics(folder), rate, title), folder, "history")
    if not metrics:
        return
    title += f": test accuracy {metrics['test/accuracy']:.2%}"
    counts = job.task.confusion_counts.cpu().numpy()
    report.save(plots.confusion_matrix(counts, job.data.classes, title), folder, "confusion_matrix")
    images, labels = job.data.test_images()
    device = next(job.net.parameters()).device
    grid = report.predict_some(job.net, job.data.preprocess, images, labels, device)
    report.save(plots.predictions(*grid, job.data.classes, title), folder, "predictions")


def _per_class(job: Job) -> dict[str, float]:
    counts = job.task.confusion_counts
    share = counts.diagonal() / counts.sum(1).clamp(min=1)
    return dict(zip(job.data.classes, share.tolist(), strict=True))


@contextlib.contextmanager
def _plain_errors() -> Iterator[None]:
    """Say in plain words what people run into that is no bug."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(
            "the device ran out of memory. Halve data.batch_size and double "
            f"trainer.accumulate_grad_batches, which trains the same. ({str(error).splitlines()[0]})"
        ) from error
    except OSError as error:
        if error.errno == 28:
            raise UserError(f"the disk is full: {error}. Free some space, then resume this run.") from error
        raise


def _quieten() -> None:
    """Silence what Lightning says to people who configure it by hand."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for text in (".*does not have many workers.*", ".*is smaller than the logging interval.*"):
        warnings.filterwarnings("ignore", text)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"lightning.*|torchmetrics.*")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"lightning.*")
