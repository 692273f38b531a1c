"""Machines without a scheduler: two network namespaces with a cable between them."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.cluster.slurm import isolate
from tests.conftest import ROOT

ADDRESS = {"left": "10.213.7.1", "right": "10.213.7.2"}
ENV = {
    "OMP_NUM_THREADS": "1",
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    "PYTHONPATH": str(ROOT / "src"),
}


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

    def switch_on(self, name: str, command: Sequence[str], **env: str) -> None:
        """Start a machine with a command, which is all that it runs."""
        with open(self.folder / f"{name}.log", "ab") as log:
            self._running[name] = subprocess.Popen(
                self.on(name, command), cwd=ROOT, env=os.environ | ENV | env, stdout=log, stderr=log
            )

    def on(self, name: str, command: Sequence[str]) -> list[str]:
        """Return what runs a command as on one of the machines."""
        hosts = f"mount --bind {self.folder}/hosts /etc/hosts && hostname {name}"
        # Not by exec: the shell is the first process there, which has to take in orphans.
        own = isolate(f"{hosts} && {subprocess.list2cmdline(command)}; exit $?")
        return ["ip", "netns", "exec", self.network(name), *own]

    def switch_off(self, name: str) -> None:
        """End all that runs on a machine, at once."""
        if process := self._running.pop(name, None):
            process.kill()  # `ip netns exec` has become `unshare`
            process.wait()

    def wait(self, name: str, seconds: float) -> int:
        """Return how a machine's command ended."""
        return self._running[name].wait(seconds)

    def logs(self) -> str:
        """Return what the machines have printed."""
        files = sorted(self.folder.glob("*.log"))
        return "\n".join(f"--- {file.name}\n{file.read_text()[-4000:]}" for file in files)
