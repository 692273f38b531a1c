"""Which process has a job of a sweep, among any number of them on all machines that share its folder.

Two kinds of files in the job's folder:

.claim-N  the N-th claim on the job. It is made by O_EXCL, which a disk grants to one process alone, however
          many ask at once and wherever, and never removed, so that no number comes twice. Whoever has the
          highest number has the job, and holds a lock on this file meanwhile.
.claim    what the holder says of itself, written in place: its number, and a beat that it renews.

A held lock proves that the holder is there, a free one on the holder's own machine that it is gone. On
another machine a free lock proves nothing, because there `flock` may not reach, or not exist: then a holder
counts as gone once its ``.claim`` has not changed for STALE seconds by the clock of the process that looks.
No two machines' clocks are compared. A holder that was only paused or cut off finds the higher number, and
its job ends before it writes more (`end_if_lost`).

Ideas and facts: fencing tokens (Kleppmann 2016, "How to do distributed locking"); O_EXCL on NFS (open(2)); a
file that is opened is as new as its last close anywhere (nfs(5), "Data and metadata coherence"), while a name
may be out of date for a minute: so a holder looks into ``.claim``, and not only for a higher number.
"""

import contextlib
import json
import os
import socket
import sys
import threading
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypedDict

from vitlab.core.files import is_locked, try_lock
from vitlab.core.untrusted import fits

BEAT = 10  # seconds between two signs of life of a holder
STALE = 60  # seconds without one after which it counts as gone
LENGTH = 512  # bytes of ``.claim``, which is overwritten and never shortened
NUMBER = "VITLAB_CLAIM"  # set for a job that a worker starts: the number of its claim


class Lease(TypedDict):
    """What stands in ``.claim``."""

    number: int
    session: str  # the call of the verb that the holder works for
    machine: str
    pid: int
    locked: bool  # whether the holder has the lock on its claim
    beat: int
    released: bool


@dataclass(frozen=True)
class Standing:
    """How it stands with a job: whether it is free or certainly held (neither: time will tell)."""

    number: int  # of the next claim
    free: bool = False
    held: bool = False


def name_machine() -> str:
    """Return what tells this machine, since it was started, from all others."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
    except OSError:  # not Linux
        boot = f"{uuid.getnode():x}"
    return f"{socket.gethostname()}-{boot[:8]}"


def read_lease(folder: Path) -> Lease | None:
    """Return what a job's holder says of itself, the last one's if it is free; None if nothing readable."""
    return _read(folder)[1]


def _read(folder: Path) -> tuple[bytes, Lease | None]:
    """Return the bytes of ``.claim``, and what they say if they are not damaged."""
    content = b""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        with open(folder / ".claim", "rb") as file:
            content = file.read(LENGTH)
        lease = json.loads(content)
        if fits(lease, Lease):
            return content, lease
    return content, None


def _token(folder: Path, number: int) -> Path:
    return folder / f".claim-{number}"


def _find_highest(folder: Path) -> int:
    numbers = [path.name.removeprefix(".claim-") for path in folder.glob(".claim-*")]
    return max((int(number) for number in numbers if number.isdecimal()), default=0)


def is_held(folder: Path) -> bool:
    """Say whether a job seems to be held, for people: of another machine a glance cannot tell for certain."""
    lease = read_lease(folder)
    if lease is None or lease["released"]:
        return False
    if is_locked(_token(folder, lease["number"])):
        return True
    if lease["locked"] and lease["machine"] == name_machine():
        return False
    age = time.time() - (folder / ".claim").stat().st_mtime
    return abs(age) < 3 * STALE


class Watch:
    """What one process has seen of the jobs that others hold, and since when, by its own clock."""

    def __init__(self) -> None:
        # Of each folder what was seen last, since when, and whether that number's holder has shown a beat.
        self._seen: dict[Path, tuple[tuple[int, bytes], float, bool]] = {}

    def __getstate__(self) -> dict[str, object]:
        return {"_seen": {}}  # another process may run on a machine with another clock

    def look(self, folder: Path) -> Standing:
        """Return how it stands with a job."""
        content, lease = _read(folder)
        number = max(_find_highest(folder), lease["number"] if lease else 0)
        own = lease if lease and lease["number"] == number else None
        if number == 0 or (own and own["released"]):
            return Standing(number + 1, free=True)
        if is_locked(_token(folder, number)):
            return Standing(number + 1, held=True)
        if own and own["locked"] and own["machine"] == name_machine():
            return Standing(number + 1, free=True)
        now, key = time.monotonic(), (number, content)
        before, since, beats = self._seen.get(folder, (None, now, False))
        if key != before:
            since, beats = now, before is not None and before[0] == number
            self._seen[folder] = (key, since, beats)
        stale = now - since >= STALE
        return Standing(number + 1, free=stale, held=beats and not stale)


class Claim:
    """A job that this process has; a thread says every few seconds that it is still there.

    Attributes:
        number: of the claim.
        lost: another process has taken the job over, as this one seemed to be gone.
    """

    def __init__(self, folder: Path, number: int, session: str, token: IO[str]) -> None:
        locked = False
        with contextlib.suppress(OSError):  # no locks on this disk; who only asks has it for a moment
            locked = try_lock(token, patience=0.5)
        self.number = number
        self.lost = False
        self._folder = folder
        self._token = token
        self._lease: Lease = {
            "number": number,
            "session": session,
            "machine": name_machine(),
            "pid": os.getpid(),
            "locked": locked,
            "beat": 0,
            "released": False,
        }
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self.renew()
        self._thread.start()

    @classmethod
    def take(cls, folder: Path, number: int, session: str) -> "Claim | None":
        """Take a job that is free; None where another process was faster.

        Args:
            folder: of the job.
            number: the next one, see `Standing`.
            session: the call of the verb that this process works for.
        """
        try:
            token = open(_token(folder, number), "x")  # noqa: SIM115
        except FileExistsError:
            return None
        return cls(folder, number, session, token)

    def renew(self) -> None:
        """Show a sign of life, unless the job is lost."""
        if not self.is_lost():
            self._lease["beat"] += 1
            self._write()

    def is_lost(self) -> bool:
        """Say whether another process has taken the job over."""
        self.lost = self.lost or _is_superseded(self._folder, self.number)
        return self.lost

    def release(self) -> None:
        """Let go of the job."""
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            if not self.is_lost():
                self._lease["released"] = True
                self._write()
        self._token.close()

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            with contextlib.suppress(OSError):  # a disk that is away for a while, or a folder that is gone
                self.renew()

    def _write(self) -> None:
        handle = os.open(self._folder / ".claim", os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            os.pwrite(handle, json.dumps(self._lease).ljust(LENGTH).encode(), 0)
        finally:
            os.close(handle)  # by which NFS sends it


def _is_superseded(folder: Path, number: int) -> bool:
    lease = read_lease(folder)
    return (lease is not None and lease["number"] > number) or _token(folder, number + 1).exists()


def end_if_lost(folder: Path) -> None:
    """End this process at once if it is a job of a sweep that another process has taken over.

    Called before what would overwrite that one's work, and every few seconds.
    """
    number = os.environ.get(NUMBER)
    if number and _is_superseded(folder, int(number)):
        with contextlib.suppress(OSError):
            print(
                f"{folder}: its worker gave no sign of life for {STALE} seconds, so another one has taken "
                "this job over; this process ends and writes nothing more.",
                file=sys.stderr,
                flush=True,
            )
        os._exit(1)
