"""Several machines without a scheduler: two network namespaces with a cable between them."""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.slurm import LONG, epochs, isolate
from tests.conftest import ROOT, on_two, same_weights, summary, verb, wait_for

SHORT = [*LONG, "trainer.max_epochs=8"]
ADDRESS = {"left": "10.213.7.1", "right": "10.213.7.2"}
WITHOUT_SLURM = "several_machines.sh"


class Machines:
    """Two machines; what one runs is gone when it is switched off."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        names = "".join(f"{address} {name}\n" for name, address in ADDRESS.items())
        (folder / "hosts").write_text(f"127.0.0.1 localhost\n{names}")

    @staticmethod
    def network(name: str) -> str:
        """Return the name of a machine's namespace, and of its interface."""
        return f"vitlab-{name}"[:15]

    def connect(self) -> None:
        """Make the machines and the cable, in place of those of a test that was killed."""
        self.disconnect()
        for name in ADDRESS:
            self.ip("netns", "add", self.network(name))
        left, right = map(self.network, ADDRESS)
        self.ip("link", "add", left, "netns", left, "type", "veth", "peer", "name", right, "netns", right)
        for name, address in ADDRESS.items():
            inside = ("-n", self.network(name))
            self.ip(*inside, "address", "add", f"{address}/24", "dev", self.network(name))
            for link in ("lo", self.network(name)):
                self.ip(*inside, "link", "set", link, "up")

    def disconnect(self) -> None:
        """Switch both off and take them away."""
        for name in ADDRESS:
            self.switch_off(name)
            self.ip("netns", "delete", self.network(name), check=False)

    @staticmethod
    def ip(*arguments: str, check: bool = True) -> None:
        subprocess.run(["ip", *arguments], check=check, capture_output=True)

    def switch_on(self, name: str, script: Path, *arguments: str) -> None:
        """Start the page's command on a machine."""
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
        torchrun += [f"--local-addr={ADDRESS[name]}", "--max-restarts=3", "--rdzv-backend=c10d"]
        torchrun += ["--rdzv-id=mine", f"--rdzv-endpoint={ADDRESS['left']}:29400", "--no-python", "bash"]
        command = subprocess.list2cmdline([*torchrun, str(script), *arguments])
        own = isolate(f"mount --bind {self.folder}/hosts /etc/hosts && hostname {name} && {command}; exit $?")
        with open(self.folder / f"{name}.log", "ab") as log:
            self._running[name] = subprocess.Popen(
                ["ip", "netns", "exec", self.network(name), *own],
                cwd=ROOT,
                env=os.environ
                | {
                    "GLOO_SOCKET_IFNAME": self.network(name),
                    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
                    "OMP_NUM_THREADS": "1",
                    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                    "PYTHONPATH": str(ROOT / "src"),
                },
                stdout=log,
                stderr=log,
            )

    def switch_off(self, name: str) -> None:
        """End all that runs on a machine, at once."""
        if process := self._running.pop(name, None):
            process.kill()  # `ip netns exec` has become `unshare`
            process.wait()

    def wait(self, seconds: float) -> dict[str, int]:
        """Return how the commands ended."""
        return {name: process.wait(seconds) for name, process in self._running.items()}

    def logs(self) -> str:
        """Return what the machines have printed."""
        files = sorted(self.folder.glob("*.log"))
        return "\n".join(f"--- {file.name}\n{file.read_text()[-4000:]}" for file in files)


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    if os.getuid() != 0 or not shutil.which("ip") or not shutil.which("unshare"):
        pytest.skip("network namespaces need root, ip (Debian: apt-get install iproute2) and unshare")
    (tmp_path / "machines").mkdir()
    pair = Machines(tmp_path / "machines")
    try:
        try:
            pair.connect()
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces here: {error.stderr.decode().strip()}")
        yield pair
    finally:
        pair.disconnect()


def test_a_machine_that_dies_comes_back_and_both_go_on(
    machines: Machines, scripts: Any, tmp_path: Path
) -> None:
    one = tmp_path / "one"
    assert verb(*on_two(*SHORT), f"hydra.run.dir={one}", OMP_NUM_THREADS="1").returncode == 0
    script = scripts(WITHOUT_SLURM)
    folder = script.parent / "several_machines"
    options = [*(o for o in SHORT if o != "trainer=cpu"), "trainer.accelerator=cpu"]
    for name in ADDRESS:
        machines.switch_on(name, script, *options)
    wait_for(lambda: epochs(folder) >= 2, 300)
    machines.switch_off("right")
    machines.switch_on("right", script, *options)
    with contextlib.suppress(subprocess.TimeoutExpired):
        machines.wait(300)
    assert summary(folder)["status"] == "finished", machines.logs()
    assert len(summary(folder)["train"]["resumed_at"]) == 1
    assert same_weights(one, folder)
