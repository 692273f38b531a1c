"""What docs/cluster.md promises of SLURM, with the scripts that stand there.

What trains is killed, cancelled or queued again in the midst of it, and has to end with the weights of a run
that was left alone.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cluster.slurm import LONG, Slurm, epochs, poll
from tests.conftest import TINY, checkpoint, same_weights, summary, verb

# What a test's job asks for in place of the page's GPUs and gigabytes.
SMALL = ("--cpus-per-task=1", "--mem=1G", "--gpus-per-node=0")
PLAIN = [*TINY, "augment=none", "model.dropout=0", "data.val_size=17", "optimizer=sgd", "optimizer.lr=0.1"]


def for_ddp(options: Sequence[str]) -> list[str]:
    """Return options to which ``trainer=ddp`` can be added."""
    return [*(o for o in options if o != "trainer=cpu"), "trainer.accelerator=cpu"]


def start_run(slurm: Slurm, script: Path, *options: str, arguments: Sequence[str] = LONG) -> tuple[str, Path]:
    """Queue a run and wait until it has trained for a while; return its job and its folder."""
    job = slurm.submit(script, [*SMALL, *options], *arguments)
    folder = script.parent / job
    poll(lambda: epochs(folder) >= 3 or slurm.state(job) in ("FAILED", "COMPLETED"))
    assert slurm.state(job) == "RUNNING", slurm.log(script, job)
    return job, folder


def finish(slurm: Slurm, script: Path, job: str, folder: Path) -> None:
    """Wait for a job's end, and check that its run has finished."""
    ended = slurm.wait_for_state(job, "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
    assert ended["JobState"] == "COMPLETED", slurm.log(script, job)
    assert summary(folder)["status"] == "finished"


def test_a_run_in_the_queue_is_the_run_at_home(slurm: Slurm, scripts: Any, undisturbed: Path) -> None:
    script = scripts("one_node.sh")
    job = slurm.submit(script, SMALL, *LONG)
    finish(slurm, script, job, script.parent / job)
    assert same_weights(undisturbed, script.parent / job)


def test_two_nodes_train_as_one_process_does(slurm: Slurm, scripts: Any, tmp_path: Path) -> None:
    one, script = tmp_path / "one", scripts("several_nodes.sh")
    small = ["--ntasks-per-node=1", *SMALL]
    job = slurm.submit(script, small, *for_ddp(PLAIN))
    assert verb(*PLAIN, f"hydra.run.dir={one}", OMP_NUM_THREADS="1").returncode == 0
    two = script.parent / job
    finish(slurm, script, job, two)
    assert {*re.findall(r"NodeList=(\S+)", slurm.call("scontrol", "show", "job", job))} >= {"a,b"}
    assert slurm.log(script, job).count("epoch 2/2") == 1, "one process speaks"
    expected, found = checkpoint(one)["state_dict"], checkpoint(two)["state_dict"]
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    ("tasks", "typed", "said"),
    [
        ("-n2", "", "needs srun --nodes=1 --ntasks-per-node=1, but SLURM has started 2 tasks on 1 node:"),
        (
            "-N2 --ntasks-per-node=1",
            "trainer.num_nodes=2 trainer.devices=2",
            "needs srun --nodes=2 --ntasks-per-node=2, but SLURM has started 2 tasks on 2 nodes:",
        ),
        (
            "-N1 -n2",
            "trainer.num_nodes=2 trainer.devices=1",
            "needs srun --nodes=2 --ntasks-per-node=1, but SLURM has started 2 tasks on 1 node:",
        ),
    ],
)
def test_a_wrong_number_of_tasks_is_refused_with_the_right_one(
    slurm: Slurm, tmp_path: Path, tasks: str, typed: str, said: str
) -> None:
    options = [*for_ddp(TINY), "trainer=ddp", *typed.split()] if typed else TINY
    command = ["srun", *tasks.split(), "python", "train.py", *options]
    with slurm.popen(*command, f"hydra.run.dir={tmp_path}/run") as process:
        printed, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert said in printed
    assert printed.count("error: trainer.devices") == 1, "one task says it"
    assert "Traceback" not in printed
    assert not (tmp_path / "run").exists()


def test_a_script_without_srun_is_told(slurm: Slurm, tmp_path: Path) -> None:
    script = tmp_path / "bare.sh"
    script.write_text('#!/bin/bash\npython train.py "$@"\n')
    two_nodes = [*for_ddp(TINY), "trainer=ddp", "trainer.num_nodes=2", "trainer.devices=1"]
    job = slurm.submit(script, ["-N2", "--ntasks-per-node=1"], *two_nodes)
    slurm.wait_for_state(job, "FAILED")
    assert "SLURM has started 1 task on 1 node (srun has not started this process)" in slurm.log(script, job)


def test_a_cancelled_run_has_a_checkpoint_and_goes_on(slurm: Slurm, scripts: Any, undisturbed: Path) -> None:
    job, folder = start_run(slurm, script := scripts("one_node.sh"))
    slurm.call("scancel", job)
    slurm.wait_for_state(job, "CANCELLED")
    poll(lambda: job not in slurm.queue())
    stopped = summary(folder)
    assert stopped["status"] == "interrupted", slurm.log(script, job)
    assert checkpoint(folder)["global_step"] == stopped["train"]["optimizer_steps"] > 0
    slurm.call("srun", "--mem=1G", "python", "train.py", f"resume={folder}")
    assert summary(folder)["train"]["resumed_at"] == [stopped["train"]["optimizer_steps"]]
    assert same_weights(undisturbed, folder)


def test_slurms_warning_queues_a_run_again_once(slurm: Slurm, scripts: Any, undisturbed: Path) -> None:
    job, folder = start_run(slurm, script := scripts("one_node.sh"))
    slurm.call("scancel", "--signal=USR1", job)  # as --signal=USR1 does when the time is nearly up
    slurm.start_now(job)
    finish(slurm, script, job, folder)
    assert slurm.show(job)["Restarts"] == "1"
    assert f"queued again as job {job}" in slurm.log(script, job)
    assert len(summary(folder)["train"]["resumed_at"]) == 1
    assert same_weights(undisturbed, folder)


def test_lightning_queues_nothing_again_by_itself(slurm: Slurm, scripts: Any) -> None:
    script = scripts("several_nodes.sh")  # where Lightning knows that it is SLURM's
    two = ["--ntasks-per-node=1", *SMALL]
    job = slurm.submit(script, two, *for_ddp(LONG), "callbacks.checkpoint.requeue=false")
    folder = script.parent / job
    poll(lambda: epochs(folder) >= 2)
    slurm.call("scancel", "--signal=USR1", job)
    ended = slurm.wait_for_state(job, "FAILED", "COMPLETED", "CANCELLED", "PENDING")
    assert (ended["JobState"], ended["Restarts"]) == ("FAILED", "0"), slurm.log(script, job)
    assert summary(folder)["status"] == "interrupted"
    assert not list(folder.rglob("hpc_ckpt*")), "Lightning's checkpoint for it"


def test_a_run_that_an_administrator_queues_again_goes_on(
    slurm: Slurm, scripts: Any, undisturbed: Path
) -> None:
    job, folder = start_run(slurm, script := scripts("one_node.sh"))
    slurm.call("scontrol", "requeue", job)
    slurm.start_now(job)
    finish(slurm, script, job, folder)
    assert len(summary(folder)["train"]["resumed_at"]) == 1
    assert same_weights(undisturbed, folder)


def test_a_run_whose_node_dies_goes_on_on_the_other_one(
    slurm: Slurm, scripts: Any, undisturbed: Path
) -> None:
    job, folder = start_run(slurm, script := scripts("one_node.sh"))
    node = slurm.show(job)["NodeList"]
    slurm.power_off(node)
    try:
        assert summary(folder)["status"] == "running", "nothing could say goodbye"
        slurm.start_now(job)
        finish(slurm, script, job, folder)
        assert slurm.show(job)["NodeList"] != node
    finally:
        slurm.repair(node)
    assert "the last attempt was killed" in slurm.log(script, job)
    assert same_weights(undisturbed, folder)


def test_a_run_of_two_nodes_outlives_one(slurm: Slurm, scripts: Any) -> None:
    script, small = scripts("several_nodes.sh"), ["--ntasks-per-node=1", *SMALL]
    job = slurm.submit(script, small, *for_ddp(LONG), "trainer.max_epochs=8")
    finish(slurm, script, job, reference := script.parent / job)
    job = slurm.submit(script, small, *for_ddp(LONG), "trainer.max_epochs=8")
    folder = script.parent / job
    poll(lambda: epochs(folder) >= 3)
    slurm.power_off("b")
    slurm.repair("b")
    slurm.start_now(job)
    finish(slurm, script, job, folder)
    assert len(summary(folder)["train"]["resumed_at"]) == 1
    assert same_weights(reference, folder)


def test_a_time_limit_leaves_a_checkpoint(slurm: Slurm, scripts: Any) -> None:
    endless = [*LONG, "trainer.max_epochs=5000"]
    job, folder = start_run(
        slurm, script := scripts("one_node.sh"), "--time=1", "--signal=TERM@0", arguments=endless
    )
    slurm.wait_for_state(job, "TIMEOUT", seconds=180)
    poll(lambda: job not in slurm.queue())
    stopped = summary(folder)
    assert stopped["status"] == "interrupted", slurm.log(script, job)
    assert checkpoint(folder)["global_step"] == stopped["train"]["optimizer_steps"]


def test_an_array_trains_a_seed_in_each_task(slurm: Slurm, scripts: Any) -> None:
    script = scripts("array.sh")
    job = slurm.submit(script, [*SMALL, "--array=1-2"], *TINY)
    poll(lambda: not slurm.queue())
    folders = [script.parent / job / f"seed-{seed}" for seed in (1, 2)]
    assert [summary(folder)["status"] for folder in folders] == ["finished"] * 2
    assert [summary(folder)["seed"] for folder in folders] == [1, 2]
