"""Two machines without a scheduler: network namespaces with a cable between them, on this machine's disk."""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.cluster.slurm import isolate
from tests.conftest import ROOT

ADDRESS = {"left": "10.213.7.1", "right": "10.213.7.2"}


def why_not() -> str:
    """Say why there can be no two machines here; empty where there can."""
    if os.getuid() != 0 or not shutil.which("ip") or not shutil.which("unshare"):
        return "network namespaces need root, ip (Debian: apt-get install iproute2) and unshare"
    return ""


class Machines:
    """The pair; what runs on one is gone when it is killed or the machine is switched off."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._running: dict[str, list[subprocess.Popen[bytes]]] = {name: [] for name in ADDRESS}
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

    def start(
        self,
        name: str,
        *command: str,
        env: Mapping[str, str] | None = None,
        log: str = "",
        whole: bool = True,
    ) -> subprocess.Popen[bytes]:
        """Start a command on a machine.

        Args:
            name: of the machine.
            command: and its arguments.
            env: more variables.
            log: the file in this folder for what it prints; by default the machine's own.
            whole: killing it kills all that it has started, as where the machine loses power.
        """
        there = f"mount --bind {self.folder}/hosts /etc/hosts && hostname {name}"
        if whole:
            own = isolate(f"{there} && {shlex.join(command)}; exit $?")
        else:
            own = ["unshare", "--mount", "--uts", "sh", "-c", f'{there} && exec "$@"', "sh", *command]
        with open(self.folder / f"{log or name}.log", "ab") as file:
            process = subprocess.Popen(
                ["ip", "netns", "exec", self.network(name), *own],
                cwd=ROOT,
                env=os.environ
                | {
                    "OMP_NUM_THREADS": "1",
                    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                    "PYTHONPATH": os.pathsep.join((str(ROOT / "src"), str(ROOT))),
                }
                | dict(env or {}),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
            )
        self._running[name].append(process)
        return process

    def switch_off(self, name: str) -> None:
        """End all that runs on a machine, at once."""
        while self._running[name]:
            process = self._running[name].pop()
            process.kill()  # `ip netns exec` has become `unshare`
            process.wait()

    def wait(self, seconds: float) -> Sequence[int]:
        """Return how the commands ended, those of each machine in their order."""
        return [process.wait(seconds) for running in self._running.values() for process in running]

    def logs(self) -> str:
        """Return what the machines have printed."""
        files = sorted(self.folder.glob("*.log"))
        return "\n".join(f"--- {file.name}\n{file.read_text()[-4000:]}" for file in files)
