"""Sweeps on Ray: on this machine alone, and on two nodes, of which one joins, dies and comes back."""

import importlib.util
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.machines import ADDRESS, Machines
from tests.cluster.slurm import LONG, epochs, poll
from tests.cluster.test_sweeps import JOBS, SAME, shares
from tests.conftest import ROOT, TINY, same_weights, summary, verb, wait_for
from vitlab.core.claim import read_lease

RAY = ["hydra/launcher=ray", "hydra.launcher.num_cpus=1"]
START = ["ray", "start", "--num-cpus=1", "--num-gpus=0", "--disable-usage-stats"]
PORT = 6379
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a" * 64}
MINUTES = range(5, 11)
MANY = [*LONG, f"callbacks.checkpoint.every_minutes={','.join(map(str, MINUTES))}"]  # all train the same

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="no Ray: pip install -e .[ray]"
)


def runs_on(name: str, folder: Path) -> bool:
    lease = read_lease(folder)
    return lease is not None and not lease["released"] and lease["machine"].startswith(name)


def test_a_job_that_fails_takes_nothing_from_the_others(tmp_path: Path) -> None:
    rates = ["optimizer=sgd", "optimizer.lr=1e-3,900,2e-3"]  # the second one diverges
    typed = ["-m", *TINY, *rates, f"hydra.sweep.dir={tmp_path}", *RAY]
    first = verb(*typed)
    folders = [tmp_path / f"lr-{rate}" for rate in ("0.001", "900", "0.002")]
    assert [summary(folder)["status"] for folder in folders] == ["finished", "failed", "finished"]
    assert first.returncode == 1
    assert "error: 1 of 3 jobs failed" in first.stderr
    assert "Traceback" not in first.stdout + first.stderr
    kept = [folder / "checkpoints" / "last.ckpt" for folder in (folders[0], folders[2])]
    before = [path.stat().st_mtime_ns for path in kept]
    assert verb(*typed).returncode == 1
    assert before == [path.stat().st_mtime_ns for path in kept], "what has finished is not run again"


def test_ctrl_c_leaves_checkpoints_and_jobs_have_their_share(tmp_path: Path) -> None:
    typed = [*SAME, "trainer.max_epochs=2000", f"hydra.sweep.dir={tmp_path}", *RAY]
    command = [sys.executable, "train.py", "-m", *typed]
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, cwd=ROOT, **pipes) as process:
        poll(lambda: epochs(tmp_path / JOBS[0]) >= 2)
        assert {env["VITLAB_CORES"] for env in shares(tmp_path).values()} == {"1"}
        process.send_signal(signal.SIGINT)
        printed, _ = process.communicate(timeout=120)
    assert process.returncode == 130, printed
    assert f"sweep.resume={tmp_path}" in printed
    assert not shares(tmp_path)
    kept = summary(tmp_path / JOBS[0])
    assert kept["status"] == "interrupted"
    assert (tmp_path / JOBS[0] / "checkpoints" / "last.ckpt").exists()


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("hydra.launcher.num_gpus=99", "a job asks for CPU 1, GPU 99, memory 0, found"),
        ("hydra.launcher.address=auto", "there is no Ray at hydra.launcher.address=auto ("),
        ("hydra.launcher.num_cpus=-1", "Ray refuses what hydra.launcher asks for: "),
        (
            "hydra.launcher.address=127.0.0.1:1",
            "there is no Ray at hydra.launcher.address=127.0.0.1:1 ([",
        ),
    ],
)
def test_what_ray_cannot_give_is_said(typed: str, said: str, tmp_path: Path) -> None:
    ended = verb("-m", *TINY, "seed=1,2", f"hydra.sweep.dir={tmp_path}", *RAY, typed)
    assert ended.returncode == 1
    assert ended.stderr.strip().splitlines()[-1].startswith(f"error: {said}"), ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_node_joins_and_dies_and_comes_back(machines: Machines, tmp_path: Path, undisturbed: Path) -> None:
    sweep = ["python", "train.py", "-m", *MANY, *RAY, "hydra.launcher.address=auto"]
    sweep += [f"hydra.sweep.dir={tmp_path}"]
    head = [*START, "--head", f"--port={PORT}", "--include-dashboard=false"]
    head += [f"--node-ip-address={ADDRESS['left']}"]
    # The head and the sweep on one machine, as a user types them.
    calls = f"{shlex.join(head)} && {shlex.join(sweep)}"
    running = machines.start("left", "bash", "-c", calls, env=TOKEN)
    folders = [tmp_path / f"checkpoint.every_minutes-{minutes}" for minutes in MINUTES]
    wait_for(lambda: epochs(folders[0]) >= 1, 120)
    node = [*START, "--block", f"--address={ADDRESS['left']}:{PORT}"]
    node += [f"--node-ip-address={ADDRESS['right']}"]
    machines.start("right", *node, env=TOKEN)
    wait_for(lambda: any(2 <= epochs(folder) < 10 and runs_on("right", folder) for folder in folders), 200)
    machines.switch_off("right")
    machines.start("right", *node, env=TOKEN)
    assert running.wait(400) == 0, machines.logs()
    machines.switch_off("right")
    assert [summary(folder)["status"] for folder in folders] == ["finished"] * len(MINUTES)
    assert all(same_weights(undisturbed, folder) for folder in folders)
    assert sum(len(summary(folder)["train"].get("resumed_at", [])) for folder in folders) >= 1
