"""What SLURM says of a process, as its variables say it; tests/cluster asks a real one."""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from lightning.fabric.plugins.environments import LightningEnvironment, SLURMEnvironment

from vitlab.core import processes, signals
from vitlab.core.errors import UserError
from vitlab.core.processes import rank_in_environment
from vitlab.core.run_folder import RunFolder
from vitlab.core.signals import PARENT, StopSignal
from vitlab.core.slurm import check_tasks, count_tasks
from vitlab.training.lightning_internals import cluster_environment

# As SLURM 22.05 sets them for the second of four tasks on two nodes, and for the script that calls srun.
SCRIPT = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_NTASKS_PER_NODE": "2"}
STEP = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NUM_NODES": "2", "SLURM_LOCALID": "1", "SLURM_NODEID": "0"}
SECOND = SCRIPT | STEP | {"SLURM_PROCID": "1"}


@pytest.fixture(autouse=True)
def _no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)


def in_job(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def test_a_task_is_a_rank_and_a_batch_script_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    in_job(monkeypatch, SCRIPT)
    assert (rank_in_environment(), count_tasks()) == (None, 1)
    assert isinstance(cluster_environment(), LightningEnvironment)
    in_job(monkeypatch, SECOND)
    assert (rank_in_environment(), count_tasks()) == (1, 4)


def test_lightning_queues_no_job_again(monkeypatch: pytest.MonkeyPatch) -> None:
    in_job(monkeypatch, SECOND)
    monkeypatch.delenv("SLURM_NTASKS_PER_NODE")
    environment = cluster_environment(2)
    assert isinstance(environment, SLURMEnvironment)
    assert environment.auto_requeue is False
    assert (environment.world_size(), environment.global_rank(), environment.local_rank()) == (4, 1, 1)
    environment.validate_settings(num_devices=2, num_nodes=2)


@pytest.mark.parametrize(
    ("devices", "nodes", "more", "right"),
    [
        (2, 2, {}, ""),
        ([0, 3], 2, {}, ""),
        ("auto", 5, {}, ""),  # known later
        (1, 1, {"SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_NUM_NODES": "1"}, ""),
        (
            4,
            1,
            {"SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_NUM_NODES": "1"},
            "",
        ),  # vitlab starts three
        (4, 2, {"WORLD_SIZE": "8"}, ""),  # torchrun in each task
        (1, 1, {}, "srun --nodes=1 --ntasks-per-node=1, but SLURM has started 4 tasks on 2 nodes"),
        (4, 1, {}, "srun --nodes=1 --ntasks-per-node=4, but SLURM has started 4 tasks on 2 nodes"),
        (4, 2, {}, "srun --nodes=2 --ntasks-per-node=4, but SLURM has started 4 tasks on 2 nodes"),
    ],
)
def test_the_tasks_that_srun_started_are_those_of_the_run(
    monkeypatch: pytest.MonkeyPatch, devices: Any, nodes: int, more: dict[str, str], right: str
) -> None:
    in_job(monkeypatch, SECOND | {"SLURM_PROCID": "0"} | more)
    if not right:
        check_tasks(devices, nodes)
        return
    with pytest.raises(UserError, match=right):
        check_tasks(devices, nodes)
    monkeypatch.setenv("SLURM_PROCID", "3")
    with pytest.raises(SystemExit):  # the first task says it, once
        check_tasks(devices, nodes)


def test_several_nodes_without_srun_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    in_job(monkeypatch, SCRIPT)
    with pytest.raises(UserError, match="srun has not started this process"):
        check_tasks(2, 2)
    check_tasks(2, 1)


def test_what_vitlab_starts_is_no_task_of_slurm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    in_job(monkeypatch, SECOND)
    code = f"import json, os; open({str(tmp_path / 'env')!r}, 'w').write(json.dumps(dict(os.environ)))"
    monkeypatch.setattr(sys, "executable", tmp_path / "python")
    (tmp_path / "python").write_text(f'#!/bin/sh\nexec python3 -c "{code}"\n')
    (tmp_path / "python").chmod(0o755)
    assert processes.start(RunFolder(tmp_path)).wait() == 0
    env = json.loads((tmp_path / "env").read_text())
    assert not {"SLURM_PROCID", "SLURM_NTASKS", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"} & env.keys()
    assert env["SLURM_JOB_ID"] == "7"
    assert env[PARENT] == str(os.getpid())


@pytest.mark.parametrize("variable", [PARENT, "SLURM_JOB_ID"])
def test_a_signal_that_comes_twice_by_itself_counts_once(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    ended: list[int] = []
    monkeypatch.setattr(signals.os, "_exit", ended.append)
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.delenv(PARENT, raising=False)
    monkeypatch.setenv(variable, "1")
    stop = StopSignal()
    stop._handle(signal.SIGTERM, None)
    now[0] += 1
    stop._handle(signal.SIGTERM, None)
    assert not ended, "the checkpoint is being written"
    now[0] += 2
    stop._handle(signal.SIGTERM, None)
    assert ended == [143]


def test_at_the_keyboard_a_second_signal_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr(signals.os, "_exit", ended.append)
    monkeypatch.delenv(PARENT, raising=False)
    stop = StopSignal()
    stop._handle(signal.SIGINT, None)
    stop._handle(signal.SIGINT, None)
    assert ended == [130]
