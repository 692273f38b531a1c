"""One file from the network: resumable, and given its name only when checked.

Written here because no well-kept library resumes a download, checks it and takes a mirror.
"""

import hashlib
import http.client
import os
import re
import shutil
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vitlab.core.errors import UserError

ANSWER_SECONDS = 10.0  # for name, connection and first answer together
STALL_SECONDS = 30.0  # without a byte, or with fewer than `SLOW_BYTES`
SLOW_BYTES = 1 << 15
BLOCK_BYTES = 1 << 18
MAX_WEAK = 3  # connections in a row that bring less than a block, before it is given up
MAX_BYTES = 1 << 30  # of a file: whoever sends more sends something else, or without end


class DownloadError(Exception):
    """Why a file could not be downloaded, without the full stop."""


@contextmanager
def explained(name: str, root: Path, url: str, md5: object, files: str) -> Iterator[None]:
    """Say what can be done where a data set is not in ``root`` and cannot be put there.

    Args:
        name: of the data set.
        url, md5: as in the config, where either may be null.
        files: what would have to lie in ``root``.

    Raises:
        UserError: of every DownloadError and OSError.
    """
    try:
        if not (url and md5):
            raise DownloadError("data.url and data.md5 must be given")
        yield
    except DownloadError as error:
        raise UserError(
            f"{name} is not in {root.resolve()} and could not be downloaded{f' from {url}' * bool(url)}: "
            f"{error}.\n"
            "Options:\n"
            f"  - put {files} there, or give the folder that holds it: data.root=DIR\n"
            "  - download from elsewhere: data.url=ADDRESS\n"
            "  - train on your own images: data=image_folder data.root=DIR\n"
            "  - train on the built-in shapes, which need no download: data=shapes"
        ) from error
    except OSError as error:
        raise UserError(
            f"{name} cannot be put into {root}: {error}. Set data.root to a folder that can be written to, "
            f"or to one that holds {files}."
        ) from error


def download(url: str, target: Path, md5: str) -> None:
    """Download ``url`` to ``target``, continuing what an earlier call left.

    The bytes go to ``<target>.part`` beside it, which takes the final name when its MD5 sum is right. A
    stalled or broken connection is resumed as long as it brings something, but no more than twice for little;
    then the part is kept for the next call. A sum that is wrong after several connections may mean that the
    file has changed in between: then it is downloaded again from the start.

    Args:
        url: http, https or file.
        target: the file to make; its folder exists.
        md5: the sum expected, in hexadecimal.

    Raises:
        DownloadError: it cannot be downloaded, within 10 seconds if nothing answers.
        UserError: the sum is wrong or the file has no end (the part is deleted), or the address is of another
            kind.
    """
    if not re.match("(https?|file)://", url, re.IGNORECASE):
        raise UserError(
            f"data.url={url} is not an address to download from: it must begin with http://, https:// or "
            "file://."
        )
    part = target.with_name(target.name + ".part")
    found = md5_of(part) if part.exists() else None
    weak = 0
    again = True  # from the start, where several connections brought a wrong file
    while found != md5.lower():
        before = _size(part)
        try:
            _receive(url, part)
        except DownloadError as error:
            kept = _size(part)
            weak = weak + 1 if kept - before < BLOCK_BYTES else 0
            if kept > before and weak < MAX_WEAK:
                continue
            hint = f".\nThe first {_mib(kept)} are kept: running again continues from there"
            raise DownloadError(f"{error}{hint if kept else ''}") from error
        found = md5_of(part)
        if found != md5.lower():
            with part.open("rb") as stream:
                page = " (it is a web page)" * stream.read(64).lstrip().startswith(b"<")
            part.unlink()
            if not (before and again):
                raise UserError(
                    f"{url} is not the expected file{page}: its MD5 is {found}, expected {md5}. It has been "
                    "deleted. Try again, or give another mirror: data.url=ADDRESS"
                )
            again = False
    os.replace(part, target)


def md5_of(file: Path) -> str:
    """Return the MD5 sum of a file, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _receive(url: str, part: Path) -> None:
    """Make one connection and append what it brings to ``part``."""
    start = _size(part)
    headers = {"User-Agent": "vitlab"} | ({"Range": f"bytes={start}-"} if start else {})
    try:
        response = _open(urllib.request.Request(url, headers=headers))
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and start:  # nothing follows: the part is complete, or of something else
            return
        reason = str(error.reason).partition("\n")[0].rstrip(".")
        raise DownloadError(f"{url} answered {error.code} {reason}") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise DownloadError(_reason(error)) from error
    with response:
        length = response.headers.get("Content-Length") or ""
        total = int(length) if length.isdigit() else 0  # 0: unknown
        expected = re.match(rf"bytes {start}-", response.headers.get("Content-Range") or "")
        if getattr(response, "status", None) == 206 and expected:
            total += start if total else 0
        else:  # a server that does not know ranges: from the start
            start = 0
        if total and shutil.disk_usage(part.parent).free < total - start:
            raise UserError(
                f"{part.parent} has no room for {_mib(total - start)}. Free some space, or set data.root."
            )
        done = start
        with part.open("ab" if start else "wb") as stream, _progress(url, start, total) as show:
            for block in _blocks(response, url):
                done += stream.write(block)
                if done > MAX_BYTES:
                    break
                show(done)
    if done > MAX_BYTES:
        part.unlink()
        raise UserError(
            f"{url} is not the expected file: it has more than {_mib(MAX_BYTES)}. Give another mirror: "
            "data.url=ADDRESS"
        )
    if done < total:
        raise DownloadError(f"the connection ended after {_mib(done)} of {_mib(total)}")


def _blocks(response: Any, url: str) -> Iterator[bytes]:
    # read1 returns what has arrived; read would wait for a full block, and lose what it has on a stall.
    read = getattr(response, "read1", response.read)
    since, came = time.monotonic(), 0
    try:
        while block := read(BLOCK_BYTES):
            yield block
            came += len(block)
            if (now := time.monotonic()) - since > STALL_SECONDS:
                if came < SLOW_BYTES:
                    raise DownloadError(f"{url} sent only {came} bytes in {STALL_SECONDS:.0f} s")
                since, came = now, 0
    except TimeoutError as error:
        raise DownloadError(f"{url} sent nothing for {STALL_SECONDS:.0f} s") from error
    except (OSError, http.client.HTTPException) as error:
        raise DownloadError(f"the connection broke: {_reason(error)}") from error


def _open(request: urllib.request.Request) -> Any:
    """Open an address, giving up after ``ANSWER_SECONDS`` whatever hangs.

    The timeout of a socket counts for each address of a name and not for resolving the name, which
    alone can take half a minute without a network; a thread can be left behind.
    """
    answer: Future[Any] = Future()

    def work() -> None:
        try:
            answer.set_result(urllib.request.urlopen(request, timeout=STALL_SECONDS))
        except Exception as error:
            answer.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        return answer.result(ANSWER_SECONDS)
    except TimeoutError:
        raise TimeoutError(f"no answer from {request.host or 'it'} in {ANSWER_SECONDS:.0f} seconds") from None


def _reason(error: BaseException) -> str:
    if isinstance(error, http.client.BadStatusLine) and not isinstance(error, OSError):
        return "its answer is not HTTP"
    inner = getattr(error, "reason", None)
    if isinstance(inner, BaseException):
        error = inner
    return str(getattr(error, "strerror", None) or error) or type(error).__name__


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"


@contextmanager
def _progress(url: str, start: int, total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar on a terminal, or a line every tenth in a log; yield what is called with the bytes done."""
    title = f"Downloading {url.rpartition('/')[2]}"
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import DownloadColumn, Progress, TransferSpeedColumn

        columns = (*Progress.get_default_columns(), DownloadColumn(binary_units=True), TransferSpeedColumn())
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(title, total=total or None, completed=start)
            yield lambda done: bar.update(task, completed=done)
        return
    tenth = -1

    def show(done: int) -> None:
        nonlocal tenth
        if total and (now := done * 10 // total) > tenth:
            tenth = now
            print(f"{title}: {_mib(done)} of {_mib(total)}", file=sys.stderr)

    yield show
