"""Several machines without a scheduler: two network namespaces with a cable between them."""

import contextlib
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.cluster.machines import ADDRESS, Machines
from tests.cluster.slurm import LONG, epochs
from tests.conftest import on_two, same_weights, summary, verb, wait_for

SHORT = [*LONG, "trainer.max_epochs=8"]
WITHOUT_SLURM = "several_machines.sh"


def switch_on(machines: Machines, name: str, script: Path, *arguments: str) -> None:
    """Start the page's command on a machine."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    torchrun += [f"--local-addr={ADDRESS[name]}", "--max-restarts=3", "--rdzv-backend=c10d"]
    torchrun += ["--rdzv-id=mine", f"--rdzv-endpoint={ADDRESS['left']}:29400", "--no-python", "bash"]
    env = {"GLOO_SOCKET_IFNAME": machines.network(name), "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    machines.start(name, *torchrun, str(script), *arguments, env=env)


def test_a_machine_that_dies_comes_back_and_both_go_on(
    machines: Machines, scripts: Any, tmp_path: Path
) -> None:
    one = tmp_path / "one"
    assert verb(*on_two(*SHORT), f"hydra.run.dir={one}", OMP_NUM_THREADS="1").returncode == 0
    script = scripts(WITHOUT_SLURM)
    folder = script.parent / "several_machines"
    options = [*(o for o in SHORT if o != "trainer=cpu"), "trainer.accelerator=cpu"]
    for name in ADDRESS:
        switch_on(machines, name, script, *options)
    wait_for(lambda: epochs(folder) >= 2, 300)
    machines.switch_off("right")
    switch_on(machines, "right", script, *options)
    with contextlib.suppress(subprocess.TimeoutExpired):
        machines.wait(300)
    assert summary(folder)["status"] == "finished", machines.logs()
    assert len(summary(folder)["train"]["resumed_at"]) == 1
    assert same_weights(one, folder)
