"""Hydra's launchers: where the jobs of a sweep run. Torch-free.

Hydra's own sweeper knows neither resuming nor what cannot run, so the jobs are handed to the launcher here,
through the interface that every launcher plugin has: each is a folder and nothing else.
"""

import functools
import importlib.util
import os
import signal
import threading
import time
from typing import Any

from hydra._internal.callbacks import Callbacks
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf

from vitlab.config.composer import Composer
from vitlab.config.types import found as show_found
from vitlab.config.types import like, show
from vitlab.core.console import say
from vitlab.core.cpu_count import cores
from vitlab.core.errors import UserError
from vitlab.core.run_folder import RunFolder
from vitlab.core.signals import Interrupted, on_signal
from vitlab.sweep.progress import Progress, show_results, unfinished
from vitlab.sweep.record import Sweep
from vitlab.sweep.worker import Session, run_one

EXTRAS = {"joblib": "joblib", "submitit_local": "submitit", "submitit_slurm": "submitit"}
# As in conf/train.yaml: the run folder is the record.
QUIET = ("hydra/job_logging=none", "hydra/hydra_logging=none", "hydra.output_subdir=null")
# The one of this process's sweep: where a job runs in this very process its end is said at once.
_progress: Progress | None = None
_busy = threading.Lock()  # while a job runs in this process


def check_launcher(sweep: Sweep) -> DictConfig:
    """Return the composed config of a sweep, with what chooses its launcher checked.

    Raises:
        UserError: an option or an extra is not there, or a value is of a wrong kind.
    """
    with Composer("train") as composer:
        config = _compose(composer, sweep, sweep.launcher)
        name = _name(config)
        typed = any(o.startswith("hydra.launcher.") for o in sweep.launcher)
        base = _compose(composer, sweep, [f"hydra/launcher={name}"]) if typed else config
    if (sweeper := config.hydra.runtime.choices["hydra/sweeper"]) != "basic":
        raise UserError(
            f"hydra/sweeper={sweeper} has no part in vitlab's sweeps: leave it out. sweep=optuna searches "
            "instead of running every combination."
        )
    values, standing = _values(config), _values(base)
    if not _is_installed(values["_target_"]):
        raise UserError(f"hydra/launcher={name} needs an extra: pip install -e .[{EXTRAS.get(name, name)}]")
    for key, value in values.items():
        kind = like(standing[key])
        if kind and not kind.accepts(value):
            raise UserError(
                f"hydra.launcher.{key}={show(value)}: expected {kind.says}, found {show_found(value)}."
            )
    if values.get("n_jobs") == 0:
        raise UserError("hydra.launcher.n_jobs=0: expected how many jobs at a time, or -1 for one a core.")
    return config


def _compose(composer: Composer, sweep: Sweep, overrides: list[str]) -> DictConfig:
    place = str(sweep.path).replace("\\", "\\\\").replace("'", "\\'")
    others = [o for o in overrides if not o.startswith("hydra.sweep.dir=")]
    return composer.compose((*others, f"hydra.sweep.dir='{place}'"))


def _values(config: DictConfig) -> dict[str, Any]:
    plain = OmegaConf.to_container(config.hydra.launcher, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _is_installed(target: str) -> bool:
    package = target.rpartition(".")[0]
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False


def run_jobs(sweep: Sweep, config: DictConfig) -> None:
    """Hand every job that is left to the launcher, and follow them to their end.

    Args:
        config: from `check_launcher`.

    Raises:
        UserError: jobs failed.
        Interrupted: Ctrl-C or SIGTERM; the jobs under way have kept a checkpoint.
    """
    global _progress
    jobs = sweep.left()
    at_a_time = _at_a_time(config, len(jobs))
    # submitit has its own way with GPUs
    session = Session.begin(sweep.path, at_a_time=at_a_time, divide_gpus=_name(config) == "joblib")
    progress = _progress = Progress(sweep, say)
    size = config.hydra.sweeper.max_batch_size or len(jobs)
    if _name(config) == "submitit_local":  # has no queue, and would start all of them
        size = min(size, at_a_time)
    # A job's folder says what to train; what the launcher composes for it is Hydra's own node alone.
    config.hydra.job.config_name = None
    config.hydra.overrides.hydra = [*config.hydra.overrides.hydra, *QUIET]
    try:
        heard = on_signal(functools.partial(_hear, session))
        with session.open(), Composer("train") as composer, heard, progress.follow():
            launcher = Plugins.instance().instantiate_launcher(
                hydra_context=HydraContext(composer.loader, Callbacks()),
                task_function=functools.partial(work, session=session),
                config=config,
            )
            for first in range(0, len(jobs), size):
                batch = [[f"hydra.sweep.subdir={job.folder}"] for job in jobs[first : first + size]]
                for ended in launcher.launch(batch, initial_job_idx=first):
                    if ended.status == JobStatus.FAILED:  # a fault of ours: a job that fails is no exception
                        raise ended._return_value
            stopped = session.stopped()
    finally:
        _progress = None
        sweep.save()
    _conclude(sweep, progress, stopped)


def work(config: DictConfig, *, session: Session) -> None:
    """Run one job: what a launcher calls, in this process, another one, or on another machine."""
    if _progress is None and threading.current_thread() is threading.main_thread():
        # A worker in the group of the terminal gets its Ctrl-C too, and must live to pass it on. (Not
        # SIG_IGN, which the job would inherit.)
        signal.signal(signal.SIGINT, lambda signum, frame: None)
        if _leave_with.__name__ not in (thread.name for thread in threading.enumerate()):  # its first job
            watch = threading.Thread(target=_leave_with, args=(session,), name=_leave_with.__name__)
            watch.daemon = True
            watch.start()
    with _busy:
        run_one(RunFolder(HydraConfig.get().runtime.output_dir), session)
    if _progress is not None:
        _progress.look()


def _leave_with(session: Session) -> None:
    """End this worker when its sweep is gone and its job, which is told to end too, has done so.

    Joblib's workers would wait for a parent that was killed.
    """
    while not session.gone():
        time.sleep(1)
    with _busy:
        os._exit(1)


def _at_a_time(config: DictConfig, jobs: int) -> int:
    """Return how many jobs this machine runs at a time; for joblib, start no more workers than that."""
    launcher = config.hydra.launcher
    if _name(config) == "submitit_local":
        return max(1, min(cores() // (launcher.cpus_per_task or cores()), jobs))
    if _name(config) != "joblib":
        return 1
    asked = launcher.n_jobs if launcher.n_jobs > 0 else cores() + 1 + launcher.n_jobs
    launcher.n_jobs = max(1, min(asked, jobs))
    return int(launcher.n_jobs)


def _name(config: DictConfig) -> str:
    return str(config.hydra.runtime.choices["hydra/launcher"])


def _hear(session: Session, signum: int) -> None:
    """Turn the first Ctrl-C or SIGTERM into a wish that the jobs hear; a second one ends everything."""
    if session.stopped():
        raise KeyboardInterrupt
    session.stop(signum)
    say("the sweep stops: its jobs keep a checkpoint and end; once more stops at once")


def _conclude(sweep: Sweep, progress: Progress, stopped: int | None) -> None:
    left, total = sweep.left(), len(sweep.runnable)
    again = f"python train.py sweep.resume={sweep}"
    if stopped:
        say(f"stopped with {len(left)} of {total} jobs left:\n{unfinished(sweep)}\ngo on with: {again}")
        raise Interrupted(stopped)
    if len(left) < total:
        show_results(sweep)
    running = [job for job in left if sweep.state(job) == "running"]
    if running:
        say(f"{len(running)} of {total} jobs are being run by another process:\n{unfinished(sweep, running)}")
    if progress.failed:
        names = "; ".join(job.label or str(job.folder) for job in progress.failed[:3])
        more = ", …" if len(progress.failed) > 3 else ""
        raise UserError(
            f"{len(progress.failed)} of {total} jobs failed: {names}{more}. Each goes on from its last "
            f"checkpoint, if it has one, by: {again}"
        )
    if others := len(left) - len(running):
        raise UserError(f"{others} of {total} jobs did not run; go on with: {again}")
