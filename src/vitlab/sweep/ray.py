"""The jobs of a sweep on a Ray cluster, each a task of Ray's.

The launcher that Hydra knows (hydra-ray-launcher 1.2) asks for all results at once, so that one job that
fails takes away those of all others. Here Ray finds the place for each job, and the folders of the jobs say
what became of them.
"""

import logging
import os
import signal
import socket
from collections.abc import Sequence
from typing import Any

import ray
from omegaconf import DictConfig, OmegaConf
from ray.exceptions import RayError, TaskCancelledError

from vitlab.core.console import say
from vitlab.core.cpu_count import SHARE, count_cores
from vitlab.core.errors import UserError
from vitlab.core.run_folder import RunFolder
from vitlab.sweep.worker import Worker

LOCAL = "local"  # a Ray on this machine alone, in Ray's own words


def run_on_ray(folders: Sequence[RunFolder], launcher: DictConfig, worker: Worker) -> None:
    """Hand jobs to Ray and wait until none of its tasks is left.

    Where the sweep is to stop, tasks that have not begun are cancelled; the jobs are told by `Worker`.

    Args:
        folders: of the jobs.
        launcher: ``hydra.launcher``.
        worker: the open worker of this call.

    Raises:
        UserError: there is no such cluster, or Ray refuses what the launcher asks for.
    """
    options: Any = OmegaConf.to_container(launcher, resolve=True)
    del options["_target_"]
    address, memory = options.pop("address"), options.pop("memory_gb")
    options["memory"] = None if memory is None else int(memory * 2**30)
    _connect(address)
    try:
        try:
            task = ray.remote(_run_job).options(**options)
        except (ValueError, TypeError, AssertionError) as error:
            raise UserError(f"Ray refuses what hydra.launcher asks for: {error}") from error
        _check_room(options, address)
        cores = max(1, int(options["num_cpus"]))
        left = {task.remote(folder, worker, os.getcwd(), cores): folder for folder in folders}
        told = False
        while left:
            if worker.stop_signal() and not told:
                told = True
                for reference, folder in left.items():
                    if not worker.has_tried(folder):
                        ray.cancel(reference)
            for reference in ray.wait([*left], timeout=1)[0]:
                folder = left.pop(reference)
                try:
                    ray.get(reference)
                except TaskCancelledError:
                    pass
                except RayError as error:  # such as: one node after the other has died under it
                    say(f"note: {folder}: Ray says {str(error).strip().splitlines()[-1]}")
    finally:
        ray.shutdown()


def _run_job(folder: RunFolder, worker: Worker, place: str, cores: int) -> None:
    """Run a job where Ray has put it."""
    os.chdir(place)  # names of files in a job's record may begin there
    os.environ[SHARE] = str(cores)
    # Ray's processes do not hear Ctrl-C, and theirs inherit that; `Worker` passes on what the user wants.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    worker.enter_allocation(1)
    worker.run_jobs(folder)


def _connect(address: str) -> None:
    own: Any = {"num_cpus": count_cores(), "include_dashboard": False} if address == LOCAL else {}
    before = signal.getsignal(signal.SIGTERM)
    try:
        if ":" in address:  # Ray would ask for minutes whether somebody listens
            host, _, port = address.rpartition(":")
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **own)
    except (RayError, OSError, RuntimeError, ValueError, ImportError) as error:
        raise UserError(
            f"there is no Ray at hydra.launcher.address={address} ({' '.join(str(error).split())}). Expected "
            "HOST:PORT as `ray start --head` shows it, auto for the cluster that this machine belongs to, or "
            "local for a Ray on this machine alone."
        ) from error
    finally:
        signal.signal(signal.SIGTERM, before)  # Ray has one of its own, which ends without a word


def _check_room(options: dict[str, Any], address: str) -> None:
    """Say so where no node has what a job asks for; one that joins later may have it.

    Raises:
        UserError: it is this machine alone.
    """
    asked = {"CPU": options["num_cpus"], "GPU": options["num_gpus"], "memory": options["memory"] or 0}
    asked |= options["resources"]
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if any(all(node.get(name, 0) >= amount for name, amount in asked.items()) for node in nodes):
        return
    found = "; ".join(", ".join(f"{name} {node.get(name, 0):g}" for name in asked) for node in nodes)
    said = (
        f"a job asks for {', '.join(f'{name} {amount:g}' for name, amount in asked.items())}, found {found}"
    )
    if address == LOCAL:
        raise UserError(f"{said}: lower hydra.launcher.num_cpus, num_gpus, memory_gb or resources.")
    say(f"note: {said}: the jobs wait for a node that has as much")
