"""Let workers on three machines join, leave and die on one sweep, and look whether each job was run once.

    python -m tests.chaos_workers --rounds 5 --jobs 60 --light --out kills.csv      (as root, on Linux)

A machine is a network namespace with a host name of its own (``ip netns``, ``unshare --uts``); all share this
machine's disk. Between them `flock` works, ends at the machine, or does not exist: a library put before C's
(LD_PRELOAD) sees to that. Workers come by lot, at most two at a time, and are killed (SIGKILL: the worker
alone, or it and its job at once, as when a machine dies), told to leave (SIGTERM) or paused for longer than a
beat may stand still (SIGSTOP, in the same two ways), and then wake up. At last no job may be missing, have
been trained twice, or in two places at once, and weights are to be those of a sweep that nobody disturbed,
bit for bit. With --light the jobs are those of tests/light_job.py, which start in a moment.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.chaos import BASE, differences
from tests.conftest import ROOT, summary
from tests.soak import list_tree
from vitlab.core.claim import STALE
from vitlab.core.files import csv_text
from vitlab.core.run_folder import RunFolder

LOCKS = ("per machine", "none", "everywhere")
VICTIMS = ("worker", "worker", "machine", "machine", "SIGTERM", "pause worker", "pause machine")
AT_A_TIME = 2  # workers that run
SAMPLE = 6  # jobs whose weights are compared
ENV = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
GRACE = 5  # seconds in which a job that was taken over has to notice
# flock as a disk may have it: a lock that belongs to the open file, as flock's does, on a byte that stands
# for the host's name, so that two hosts never meet.
FLOCK = """
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

int flock(int file, int operation) {
#ifdef NONE
    errno = ENOLCK;
    return -1;
#endif
    char name[256] = "";
    unsigned long place = 5381;
    gethostname(name, sizeof name - 1);
    for (char *c = name; *c; c++) place = place * 33 + *c;
    struct flock lock = {.l_whence = SEEK_SET, .l_start = place % 1000000007, .l_len = 1};
    lock.l_type = operation & LOCK_UN ? F_UNLCK : operation & LOCK_SH ? F_RDLCK : F_WRLCK;
    int done = fcntl(file, operation & LOCK_NB ? F_OFD_SETLK : F_OFD_SETLKW, &lock);
    if (done == -1 && errno == EACCES) errno = EAGAIN;
    return done;
}
"""


def why_not() -> str:
    """Return why there can be no three machines here, or nothing."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    tried = subprocess.run(["sh", "-c", "command -v ip unshare cc"], capture_output=True)
    return "ip, unshare and a C compiler are needed" if tried.returncode else ""


class Machines:
    """Three machines on this one, and the disk between them.

    Args:
        work: a folder for what is compiled.
        locks: one of LOCKS.
        verb: the command that works on a sweep, but for what is typed after it.
    """

    def __init__(self, work: Path, locks: str, verb: Sequence[str]) -> None:
        self.names = [f"vitlab{os.getpid()}-{number}" for number in range(3)]
        self.verb = [*verb]
        self.env = os.environ | ENV
        if locks != "everywhere":
            source, library = work / "flock.c", work / "flock.so"
            source.write_text(FLOCK)
            none = ["-DNONE"] * (locks == "none")
            subprocess.run(["cc", "-shared", "-fPIC", *none, "-o", library, source], check=True)
            self.env["LD_PRELOAD"] = str(library)

    def __enter__(self) -> "Machines":
        for name in self.names:
            subprocess.run(["ip", "netns", "add", name], check=True)
        return self

    def __exit__(self, *given: object) -> None:
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], check=True)

    def start(self, name: str, *typed: str, said: Path) -> subprocess.Popen[bytes]:
        """Run ``python train.py`` on a machine."""
        inside = f'hostname {name} && exec "$@"'
        prefix = ["ip", "netns", "exec", name, "unshare", "--uts", "sh", "-c", inside, "sh"]
        with open(said, "ab") as file:
            return subprocess.Popen(
                [*prefix, *self.verb, *typed],
                cwd=ROOT,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )


class Observer:
    """Looks several times a second who trains what.

    Attributes:
        together: jobs that two processes trained for longer than GRACE, neither of them paused.
        longest: seconds that two were there at most.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.together: set[str] = set()
        self.longest = 0.0
        self._since: dict[str, float] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> "Observer":
        self._thread.start()
        return self

    def __exit__(self, *given: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.2):
            now = time.monotonic()
            twice = {job for job, number in self.count().items() if number > 1}
            self._since = {job: self._since.get(job, now) for job in twice}
            for job, since in self._since.items():
                self.longest = max(self.longest, now - since)
                if now - since > GRACE:
                    self.together.add(job)

    def count(self) -> Counter[str]:
        """Return how many processes train each job, but for those that are paused or gone."""
        found: Counter[str] = Counter()
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError, IndexError):
                words = (process / "cmdline").read_bytes().split(b"\0")
                if words[1] == b"-m" and words[3].startswith(str(self.folder).encode() + b"/"):
                    state = (process / "stat").read_text().rpartition(")")[2].split()[0]
                    # Open from before it trains until all is written: not while it imports or ends.
                    files = [os.readlink(file) for file in (process / "fd").iterdir()]
                    trains = f"{words[3].decode()}/.lock" in files
                    found[Path(words[3].decode()).name] += trains and state not in "TtZX"
        return found


def strike(process: subprocess.Popen[bytes], victim: str) -> list[int]:
    """Do to a worker what the lot says; return the processes that are now paused."""
    whole = [process.pid]
    if "machine" in victim:
        whole = list_tree(process.pid)
        for pid in whole:  # so that nobody sees another die
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        whole += [pid for pid in list_tree(process.pid) if pid not in whole]
    signum = signal.SIGTERM if victim == "SIGTERM" else signal.SIGKILL
    signum = signal.SIGSTOP if "pause" in victim else signum
    for pid in whole:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signum)
    return whole if "pause" in victim else []


def wake(pids: Sequence[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def play(
    folder: Path,
    jobs: int,
    strikes: int,
    locks: str,
    lot: random.Random,
    verb: Sequence[str],
    begin: Sequence[str],
) -> dict[str, Any]:
    """Have a sweep worked on until all its jobs have finished; return a row of the table."""
    said = folder.with_suffix(".txt")
    struck: list[str] = []
    started, codes, finished_at = 0, Counter[str](), dict[str, int]()
    again: set[str] = set()
    running: dict[subprocess.Popen[bytes], float] = {}  # until when it is left alone
    paused: list[tuple[float, subprocess.Popen[bytes], list[int]]] = []  # until when
    begun = time.monotonic()
    with Machines(folder.parent, locks, verb) as machines, Observer(folder) as observer:
        try:
            while True:
                now = time.monotonic()
                assert now - begun < 3600, f"no end: {said.read_text()[-2000:]}"
                for until, process, pids in [*paused]:
                    if now >= until:
                        wake(pids)
                        paused.remove((until, process, pids))
                        running[process] = now + lot.uniform(1, 15)
                for process in [p for p in running if p.poll() is not None]:
                    del running[process]
                    codes[str(process.returncode)] += 1
                done = look(folder)
                again |= {name for name, when in finished_at.items() if done.get(name) != when}
                finished_at = done
                if len(done) == jobs and not running and not paused:
                    break
                # The first one makes the sweep; later several are started at the very same moment.
                wanted = AT_A_TIME if (folder / "sweep.json").exists() else 1
                while len(running) < wanted and len(done) < jobs:
                    typed = [f"sweep.resume={folder}"] if (folder / "sweep.json").exists() else begin
                    process = machines.start(lot.choice(machines.names), *typed, said=said)
                    running[process] = now + lot.uniform(5, 45)
                    started += 1
                for process, until in [*running.items()]:
                    if now >= until and len(struck) < strikes and len(done) < jobs:
                        victim = lot.choice(VICTIMS)
                        struck.append(victim)
                        if pids := strike(process, victim):
                            del running[process]
                            paused.append((now + STALE + lot.uniform(15, 30), process, pids))
                        else:
                            running[process] = now + 30
                time.sleep(0.1)
        finally:
            for process in [*running, *(process for _, process, _ in paused)]:
                for pid in list_tree(process.pid):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
    counts = Counter(struck)
    return {
        "locks": locks,
        "jobs": jobs,
        "workers": started,
        **{victim: counts[victim] for victim in dict.fromkeys(VICTIMS)},
        "ended with": ", ".join(f"{code}: {number}" for code, number in sorted(codes.items())),
        "taken over": sum(len([*path.glob(".claim-*")]) - 1 for path in folder.glob("*/")),
        "while it trained": sum(len(summary(p.parent)["train"]["resumed_at"]) for p in summaries(folder)),
        "two at once, s": round(observer.longest, 1),
        "minutes": round((time.monotonic() - begun) / 60, 1),
        "again": again,
        "together": observer.together,
    }


def summaries(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/summary.json"))


def look(folder: Path) -> dict[str, int]:
    """Return when each job that has finished wrote its last checkpoint."""
    done = {}
    for path in summaries(folder):
        with contextlib.suppress(OSError, ValueError):
            if summary(path.parent).get("status") == "finished":
                done[path.parent.name] = (path.parent / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    return done


def shortcomings(row: dict[str, Any], folder: Path, whole: Path, steps: int) -> Iterator[str]:
    """Yield what is wrong with a sweep."""
    if row.pop("again"):
        yield "a job was trained again after it had finished"
    if together := row.pop("together"):
        yield f"two trained {sorted(together)} at once"
    record = json.loads((folder / "sweep.json").read_text())["jobs"]
    if len(record) != row["jobs"] or {job["state"] for job in record} != {"finished"}:
        yield f"sweep.json: {Counter(job['state'] for job in record)}"
    for path in summaries(folder):
        found = summary(path.parent)
        if found["status"] != "finished" or found["train"]["optimizer_steps"] != steps:
            yield f"{path.parent.name}: {found['status']} after {found['train']['optimizer_steps']} steps"
        if not (path.parent / "metrics.csv").exists():
            continue
        epochs = [line.split(",")[0] for line in (path.parent / "metrics.csv").read_text().splitlines()[1:]]
        if epochs != [*dict.fromkeys(epochs)]:
            yield f"{path.parent.name}: metrics.csv has epochs {epochs}"
    for job in whole.glob("seed-*/"):
        one, two = (RunFolder(path / job.name).last for path in (whole, folder))
        if not zipfile.is_zipfile(one):
            if one.read_text() != two.read_text():
                yield f"{job.name}: {two.read_text()} in place of {one.read_text()}"
            continue
        yield from (f"{job.name}: {what}" for what in differences(job, folder / job.name))
    if "Traceback" in (said := folder.with_suffix(".txt").read_text(errors="replace")):
        yield f"a traceback: {said[said.index('Traceback') :][:2000]}"


def rampage(
    rounds: int,
    jobs: int,
    strikes: int,
    seed: int,
    work: Path,
    locks: Sequence[str] = LOCKS,
    light: bool = False,
) -> Iterator[dict[str, Any]]:
    """Play so many rounds, one after the other; yield a row of each."""
    base = ["-m", *BASE, "trainer.max_epochs=8", f"seed=range(1,{jobs + 1})"]
    base = list({o.split("=", 1)[0]: o for o in base}.values())
    verb = [sys.executable, *(["-m", "tests.light_job", "train"] if light else [str(ROOT / "train.py")])]
    whole, few = work / "whole", f"seed=range(1,{(jobs if light else min(jobs, SAMPLE)) + 1})"
    ended = subprocess.run(
        [*verb, *base[:-1], few, f"hydra.sweep.dir={whole}"],
        cwd=ROOT,
        env=os.environ | ENV,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    steps = summary(whole / "seed-1")["train"]["optimizer_steps"]
    for number in range(rounds):
        folder = work / f"round{number}"
        begin = [*base, f"hydra.sweep.dir={folder}"]
        lot = random.Random(seed * 1000 + number)
        row = play(folder, jobs, strikes, locks[number % len(locks)], lot, verb, begin)
        wrong = "; ".join(shortcomings(row, folder, whole, steps))
        yield row | {"wrong": wrong}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=60)
    parser.add_argument("--strikes", type=int, default=20, help="in each round")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--locks", nargs="+", choices=LOCKS, default=list(LOCKS))
    parser.add_argument("--light", action="store_true", help="jobs without torch")
    parser.add_argument("--out", type=Path, help="a CSV file for the table")
    parser.add_argument("--work", type=Path, help="where to keep the sweeps; by default they are removed")
    given = parser.parse_args()
    if reason := why_not():
        sys.exit(f"error: {reason}")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        work = given.work or Path(temporary)
        for row in rampage(
            given.rounds, given.jobs, given.strikes, given.seed, work, given.locks, given.light
        ):
            print(json.dumps(row), flush=True)
            rows.append(row)
            if given.out:
                given.out.write_text(csv_text(list(row), rows))
    sys.exit(any(row["wrong"] for row in rows))


if __name__ == "__main__":
    main()
