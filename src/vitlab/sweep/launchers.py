"""Where the jobs of a sweep run: one after the other here, or wherever one of Hydra's launchers puts them.

Hydra's own sweeper knows neither resuming nor what cannot run, so the jobs are handed to the launcher here.
"""

import functools
import importlib.util
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobStatus
from omegaconf import DictConfig

from vitlab.config import compose
from vitlab.config.composer import Composer
from vitlab.config.hydra_internals import make_launcher
from vitlab.core.console import say
from vitlab.core.cpu_count import count_cores
from vitlab.core.errors import UserError
from vitlab.core.processes import rank_in_environment
from vitlab.core.run_folder import RunFolder, State
from vitlab.sweep.progress import Progress, list_jobs, raise_if_stopped
from vitlab.sweep.record import Job, Sweep
from vitlab.sweep.worker import LOOK, Worker

# As in conf/train.yaml, which launchers leave out when they compose a job: the run folder is the record.
QUIET = ("hydra/job_logging=none", "hydra/hydra_logging=none", "hydra.output_subdir=null")
# Jobs in a batch, for each that runs at a time: until its end joblib keeps 0.1 MB of every job, and when the
# sweep is to stop, composes what is left of it, 0.1 s each.
BATCH = 20
_busy = threading.Lock()  # while a job runs in a process that a launcher has started


def check_launcher(sweep: Sweep) -> DictConfig:
    """Return the composed config of a sweep, with what chooses its launcher checked.

    Raises:
        UserError: an option or an extra is not there, or a value is of a wrong kind.
    """
    place = str(sweep.path).replace("\\", "\\\\").replace("'", "\\'")
    others = [o for o in sweep.launcher if not o.startswith("hydra.sweep.dir=")]
    config = compose([*others, f"hydra.sweep.dir='{place}'", *QUIET], with_hydra=True)
    if (sweeper := config.hydra.runtime.choices["hydra/sweeper"]) != "basic":
        raise UserError(
            f"hydra/sweeper={sweeper} has no part in vitlab's sweeps: leave it out. sweep=optuna searches "
            "instead of running every combination."
        )
    name, launcher = _get_name(config), config.hydra.launcher
    if not _is_installed(launcher._target_):
        extra = name.partition("_")[0]  # submitit_local and submitit_slurm have one
        raise UserError(f"hydra/launcher={name} needs an extra: pip install -e .[{extra}]")
    if name == "submitit_slurm" and not shutil.which("sbatch"):
        raise UserError(
            "hydra/launcher=submitit_slurm calls sbatch, which this machine has not: type the command on "
            "one of the cluster's, or try the set-up here with hydra/launcher=submitit_local."
        )
    if (packed := config.sweep.get("jobs_per_allocation", 1)) > 1 and name != "submitit_slurm":
        raise UserError(
            f"sweep.jobs_per_allocation={packed} packs the jobs of hydra/launcher=submitit_slurm, found "
            f"hydra/launcher={name}: leave it out; hydra/launcher=joblib has hydra.launcher.n_jobs."
        )
    if launcher.get("n_jobs") == 0:
        raise UserError("hydra.launcher.n_jobs=0: expected how many jobs at a time, or -1 for one a core.")
    return config


def _is_installed(target: str) -> bool:
    try:
        return importlib.util.find_spec(target.rpartition(".")[0]) is not None
    except ModuleNotFoundError:
        return False


def launch_jobs(sweep: Sweep, config: DictConfig, show_results: Callable[[Path], object]) -> None:
    """Run every job that is left, and follow them to their end; `config` is from `check_launcher`."""
    jobs, name = sweep.unfinished(), _get_name(config)
    at_a_time = _count_at_a_time(config, len(jobs))
    worker = Worker(sweep.path, at_a_time=at_a_time, divide_gpus=name == "joblib")
    progress = Progress(sweep, len(sweep.runnable), session=worker.session)
    try:
        with worker.open(), progress.poll_regularly():
            if name == "submitit_slurm":  # SLURM itself has the jobs that have not begun
                _queue(jobs, sweep, config, worker)
            else:
                for free in _wait_for_free(sweep, worker, progress):
                    if name == "basic" or (name == "joblib" and at_a_time == 1):
                        _run_here(free, sweep, worker, progress)
                    elif name == "ray":
                        from vitlab.sweep.ray import run_on_ray  # an extra

                        run_on_ray([sweep.run_folder(job) for job in free], config.hydra.launcher, worker)
                    else:
                        _launch_elsewhere(free, config, worker, _size_batch(config, at_a_time, len(free)))
            stopped = worker.stop_signal()
    except BrokenExecutor as error:  # joblib's
        raise UserError(
            "a process of the launcher was killed, perhaps for want of memory; its jobs keep a checkpoint "
            f"and end. Resume with: {sweep.resume_command}"
        ) from error
    finally:
        sweep.save()
    left, total = sweep.unfinished(), len(sweep.runnable)
    raise_if_stopped(sweep, stopped, f"{len(left)} of {total} jobs")
    if len(left) < total and not rank_in_environment():  # of several tasks of SLURM the first shows them
        show_results(sweep.path)
    running = [job for job in left if sweep.state(job) == State.RUNNING]
    if running:
        listed = list_jobs(sweep, running)
        say(f"{len(running)} of {total} jobs are being run by another process:\n{listed}")
    if progress.failed:
        names = "; ".join(job.label or str(job.folder) for job in progress.failed[:3])
        more = ", …" if len(progress.failed) > 3 else ""
        raise UserError(
            f"{len(progress.failed)} of {total} jobs failed: {names}{more}. To resume each from its last "
            f"checkpoint, if it has one: {sweep.resume_command}"
        )
    if others := len(left) - len(running):
        raise UserError(
            f"{others} of {total} jobs did not run to their end; resume with: {sweep.resume_command}"
        )


def _wait_for_free(sweep: Sweep, worker: Worker, progress: Progress) -> Iterator[list[Job]]:
    """Yield the jobs that nobody has, again and again until all have ended or the sweep is to stop.

    A job that another process has may become free at any time: its worker may leave, or be killed.
    """
    told = False
    while not worker.stop_signal():
        left = [job for job in progress.list_open() if not worker.has_tried(sweep.run_folder(job))]
        if not left:
            return
        if free := [job for job in left if worker.is_free(sweep.run_folder(job))]:
            yield free
            progress.poll()
            continue
        if not told:
            told = True
            say(
                "waiting for jobs that other processes run, to take them over if these are killed; Ctrl-C "
                f"leaves them alone:\n{list_jobs(sweep, left)}"
            )
        time.sleep(LOOK)


def _run_here(jobs: Sequence[Job], sweep: Sweep, worker: Worker, progress: Progress) -> None:
    for job in jobs:
        if progress.is_open(job):
            worker.run_jobs(sweep.run_folder(job), patience=0)
            progress.poll()  # before the next job has something to say


def _queue(jobs: Sequence[Job], sweep: Sweep, config: DictConfig, worker: Worker) -> None:
    from vitlab.sweep.slurm import run_in_queue  # an extra

    size = config.hydra.sweeper.max_batch_size or len(jobs)
    for first in range(0, len(jobs), size):
        folders = [sweep.run_folder(job) for job in jobs[first : first + size]]
        run_in_queue(folders, config.hydra.launcher, worker, config.sweep.jobs_per_allocation)
        if worker.stop_signal():
            break


def _size_batch(config: DictConfig, at_a_time: int, jobs: int) -> int:
    """Return how many jobs one of Hydra's launchers gets at once."""
    # submitit_local has no queue, and would start all of them.
    size = {"submitit_local": at_a_time, "joblib": BATCH * at_a_time}.get(_get_name(config), jobs)
    return min(size, config.hydra.sweeper.max_batch_size or size)


def _launch_elsewhere(jobs: Sequence[Job], config: DictConfig, worker: Worker, size: int) -> None:
    """Hand the jobs to Hydra's launcher, so many in a batch."""
    # A job's folder says what to train; what the launcher composes for it is Hydra's own node alone.
    config.hydra.job.config_name = None
    with Composer("train"):
        launcher = make_launcher(config, functools.partial(_run_launched, worker=worker))
        for first in range(0, len(jobs), size):
            if worker.stop_signal():
                break
            batch = [[f"hydra.sweep.subdir={job.folder}"] for job in jobs[first : first + size]]
            for ended in launcher.launch(batch, initial_job_idx=first):
                if ended.status == JobStatus.FAILED:  # a fault of ours: a job that fails is no exception
                    raise ended._return_value


def _run_launched(config: DictConfig, *, worker: Worker) -> None:
    """Run one job: what a launcher calls in another process, or on another machine."""
    if threading.current_thread() is threading.main_thread():
        # A process in the group of the terminal gets its Ctrl-C too, and must live to pass it on. (Not
        # SIG_IGN, which the job would inherit.)
        signal.signal(signal.SIGINT, lambda signum, frame: None)
        name = _end_with_sweep.__name__
        if name not in (thread.name for thread in threading.enumerate()):  # its first job
            threading.Thread(target=_end_with_sweep, args=(worker,), name=name, daemon=True).start()
    with _busy:
        worker.run_jobs(RunFolder(HydraConfig.get().runtime.output_dir))


def _end_with_sweep(worker: Worker) -> None:
    """End this process when its sweep is gone and its job, which is told to end too, has done so.

    Joblib's processes would wait for a parent that was killed.
    """
    while not worker.is_gone():
        time.sleep(1)
    with _busy:
        os._exit(1)


def _count_at_a_time(config: DictConfig, jobs: int) -> int:
    """Return how many jobs this machine runs at a time; for joblib, start no more processes than that."""
    launcher, cores = config.hydra.launcher, count_cores()
    if _get_name(config) == "submitit_local":
        return max(1, min(cores // (launcher.cpus_per_task or cores), jobs))
    if _get_name(config) != "joblib":
        return 1
    asked = launcher.n_jobs if launcher.n_jobs > 0 else cores + 1 + launcher.n_jobs
    launcher.n_jobs = max(1, min(asked, jobs))
    return int(launcher.n_jobs)


def _get_name(config: DictConfig) -> str:
    return str(config.hydra.runtime.choices["hydra/launcher"])
