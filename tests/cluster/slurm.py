"""A SLURM of two nodes on this one machine: Debian's packages, and everything that they write in one folder.

Each node is a slurmd in namespaces of its own: a host name, so that vitlab takes it for another machine, and
process numbers, so that all that runs on it ends with it at once, as where a machine loses power.
"""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tests.conftest import ROOT, TINY, wait_for

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "unshare")
PORT = 17_817  # and the two above it
NODES = ("a", "b")
CPUS = 4  # that a node says it has, whatever this machine has
GPUS = 2  # that it says it has: counted and handed out, but nothing computes on them
# Some six seconds of training: time to interfere.
LONG = [*TINY, "data.num_train=816", "trainer.max_epochs=14"]
CONFIG = """\
ClusterName=pair
SlurmctldHost=localhost
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/log/slurmctld
SlurmdLogFile={folder}/log/slurmd-%n
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/builtin
SlurmdParameters=config_overrides
GresTypes=gpu
ReturnToService=2
KillWait=20
SlurmdTimeout=300
PartitionName=main Nodes=ALL Default=YES
"""
NODE = (
    "NodeName={name} NodeHostname={name} NodeAddr=127.0.0.1 Port={port} "
    "CPUs={cpus} RealMemory=100000 Gres=gpu:{gpus}\n"
)


def why_not() -> str:
    """Say why there can be no cluster here; empty where there can."""
    if missing := [name for name in PROGRAMS if not shutil.which(name)]:
        return f"no SLURM: {', '.join(missing)} not found (Debian: apt-get install slurm-wlm munge)"
    if os.getuid() != 0:
        return "a SLURM of one's own needs root"
    tried = subprocess.run([*isolate("true")], capture_output=True, text=True)
    return f"no namespaces here: {tried.stderr.strip()}" if tried.returncode else ""


def isolate(command: str) -> list[str]:
    """Return what runs a command of the shell as on a machine of its own: gone when it is killed."""
    own = ["--mount", "--uts", "--pid", "--fork", "--kill-child=SIGKILL", "--mount-proc"]
    return ["unshare", *own, "sh", "-c", command]


class Slurm:
    """The cluster: started by `start`, ended by `stop`.

    Args:
        folder: for its configuration, state and logs.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        dropped = ("SLURM_", "SBATCH_", "SRUN_")
        kept = {key: value for key, value in os.environ.items() if not key.startswith(dropped)}
        # One thread: processes on more would only wait for each other on a machine this small.
        self.env = kept | {
            "SLURM_CONF": f"{folder}/slurm.conf",
            "PATH": path,
            "PYTHONPATH": f"{ROOT / 'src'}",
            "OMP_NUM_THREADS": "1",
        }

    def start(self) -> None:
        """Bring up munge, the controller and both nodes, and wait until they are idle."""
        for name in ("log", "state", "munge", *(f"spool-{node}" for node in NODES)):
            (self.folder / name).mkdir(parents=True)
        self.folder.chmod(0o755)
        config = CONFIG.format(folder=self.folder, port=PORT)
        for number, name in enumerate(NODES, 1):
            config += NODE.format(name=name, port=PORT + number, cpus=CPUS, gpus=GPUS)
        (self.folder / "slurm.conf").write_text(config)
        devices = [self.folder / f"gpu{number}" for number in range(GPUS)]
        for device in devices:
            os.mknod(device, 0o020_666, os.makedev(1, 3))  # as /dev/null
        (self.folder / "gres.conf").write_text(f"Name=gpu File={self.folder}/gpu[0-{GPUS - 1}]\n")
        (self.folder / "hosts").write_text(f"127.0.0.1 localhost {os.uname().nodename} {' '.join(NODES)}\n")
        munge = self.folder / "munge"
        (munge / "key").write_bytes(os.urandom(1024))
        (munge / "key").chmod(0o400)
        places = {"key": "key", "socket": "socket", "pid": "pid", "seed": "seed"}
        files = [f"--{name}-file={munge / file}" for name, file in places.items() if name != "socket"]
        self._start("munged", "--foreground", "--force", f"--socket={munge / 'socket'}", *files)
        wait_for((munge / "socket").exists, 20)
        self._start("slurmctld", "-D", "-f", self.env["SLURM_CONF"])
        for name in NODES:
            self.power_on(name)
        wait_for(lambda: self._states() == ["idle", "idle"], 60)

    def _states(self) -> list[str]:
        listed = self.call("sinfo", "--noheader", "--Node", "--format=%t", check=False)
        return listed.split()

    def _start(self, name: str, *command: str) -> None:
        with open(self.folder / "log" / f"{name}.out", "ab") as log:
            self._running[name] = subprocess.Popen(
                [name, *command] if name in PROGRAMS else command,
                env=self.env,
                stdout=log,
                stderr=log,
                cwd=self.folder,
            )

    def power_on(self, node: str) -> None:
        """Start a node."""
        hosts = f"mount --bind {self.folder}/hosts /etc/hosts && hostname {node}"
        # Not by exec: the shell is the first process there, which has to take in orphans.
        self._start(node, *isolate(f"{hosts} && slurmd -D -N {node} -f {self.env['SLURM_CONF']}; exit"))

    def power_off(self, node: str) -> None:
        """Kill a node with all that runs on it, and let SLURM know (it would find out after its timeout)."""
        self._running[node].kill()
        self._running.pop(node).wait()
        self.call("scontrol", "update", f"nodename={node}", "state=down", "reason=power")

    def repair(self, node: str) -> None:
        """Start a node that was down, and wait until it has reported to SLURM, which takes it back then.

        To bring it back by ``scontrol`` is too early: a job that begins before the report is taken for one
        that the node has lost.
        """
        self.power_on(node)
        wait_for(lambda: not {"down", "down*", "idle*"} & {*self._states()}, 60)

    def stop(self) -> None:
        """End every process of the cluster, and what its jobs have left."""
        for name in (*NODES, "slurmctld", "munged"):
            if process := self._running.pop(name, None):
                (process.kill if name in NODES else process.terminate)()
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()

    def call(self, *command: str, check: bool = True) -> str:
        """Run one of SLURM's programs, and return what it prints."""
        ended = subprocess.run(command, env=self.env, cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert not check or ended.returncode == 0, f"{' '.join(command)}: {ended.stderr}"
        return ended.stdout.strip()

    @contextlib.contextmanager
    def popen(self, *command: str) -> Iterator[subprocess.Popen[str]]:
        """Start a program that can call SLURM, all that it prints in one pipe, and kill it at the end."""
        with subprocess.Popen(
            command, env=self.env, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def submit(self, script: Path, options: Sequence[str], *arguments: str) -> str:
        """Queue a script and return its job's number; its output stands beside it, named after the job."""
        output = f"--output={script.parent}/{script.stem}-%j.log"
        return self.call("sbatch", "--parsable", output, *options, str(script), *arguments)

    def log(self, script: Path, job: str) -> str:
        """Return what a job has printed so far."""
        file = script.parent / f"{script.stem}-{job}.log"
        return file.read_text() if file.exists() else ""

    def show(self, job: str) -> dict[str, str]:
        """Return what ``scontrol show job`` says."""
        return dict(re.findall(r"(\w+)=(\S*)", self.call("scontrol", "show", "job", "--oneliner", job)))

    def state(self, job: str) -> str:
        """Return the state of a job, such as ``RUNNING``."""
        return self.show(job)["JobState"]

    def wait_for_state(self, job: str, *states: str, seconds: float = 300) -> dict[str, str]:
        """Wait until a job is in one of the states, and return what is known of it."""
        wait_for(lambda: self.state(job) in states, seconds)
        return self.show(job)

    def queue(self) -> list[str]:
        """Return the numbers of the jobs that have not ended, a line each."""
        return self.call("squeue", "--noheader", "--array", "--format=%i").split()

    def start_now(self, job: str) -> None:
        """Let a job that was queued again begin at once; SLURM has it wait for two minutes.

        Not while a node is still ending its first life: it would take the second one for that.
        """
        wait_for(lambda: self.state(job) == "PENDING", 60)
        poll(lambda: not any("comp" in state for state in self._states()), 60)
        time.sleep(2)  # a node tells lives apart by the second in which they were begun
        self.call("scontrol", "update", f"jobid={job}", "StartTime=now")

    def logs(self, lines: int = 40) -> str:
        """Return the last lines of every log."""
        files = sorted((self.folder / "log").iterdir())
        last = {}
        for file in files:
            said = file.read_text(errors="replace").splitlines()
            # Debian's package brings plug-ins for an MPI that it does not need.
            last[file.name] = [line for line in said if "pmix" not in line and "MPI:" not in line][-lines:]
        return "\n".join("\n".join([f"--- {name}", *said]) for name, said in last.items())


def poll(condition: Callable[[], object], seconds: float = 300) -> None:
    """As `wait_for`, for a condition that costs a process to ask."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.3)


def epochs(folder: Path) -> int:
    """Return how many epochs of a run are on record."""
    file = folder / "metrics.csv"
    return max(0, len(file.read_text().splitlines()) - 1) if file.exists() else 0
