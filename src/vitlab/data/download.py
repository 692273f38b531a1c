"""One file from the network: resumable, and given its name only when checked. Torch-free."""

import contextlib
import hashlib
import http.client
import json
import os
import queue
import re
import shutil
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vitlab.core.errors import UserError

ANSWER_SECONDS = 10.0  # for name, connection and first answer together
STALL_SECONDS = 30.0  # without a byte
BLOCK = 1 << 18
SCHEMES = ("http", "https", "file")


class DownloadError(Exception):
    """Why a file could not be fetched, as part of a sentence, and how much of it has been kept."""

    def __init__(self, reason: str, kept: int = 0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.kept = kept


def fetch(url: str, target: Path, md5: str) -> None:
    """Download ``url`` to ``target``, continuing what an earlier call left.

    The bytes go to ``<target>.part`` beside it, which takes the final name when its MD5 sum is
    right. A stalled or broken connection is taken up again as long as it brings something. The part
    is kept for the next call otherwise; ``<target>.part.json`` remembers which file it is a part
    of.

    Args:
        url: http, https or file.
        target: the file to make; its folder exists.
        md5: the sum expected, in hexadecimal.

    Raises:
        DownloadError: if it cannot be fetched, within 10 seconds if nothing answers.
        UserError: if the sum is wrong (the part is deleted), or the address is of another kind.
    """
    if urllib.parse.urlsplit(url).scheme not in SCHEMES:
        raise UserError(
            f"data.url={url} is not an address to download from: it must begin with http://, "
            "https:// or file://."
        )
    part = target.with_name(target.name + ".part")
    while True:
        before = _length(part)
        try:
            _transfer(url, part)
            break
        except DownloadError as error:
            error.kept = _length(part)
            if error.kept <= before:
                raise
    found = md5_of(part)
    if found != md5.lower():
        _forget(part)
        raise UserError(
            f"What {url} sent is not the file expected: its MD5 is {found}, expected {md5}. It has "
            "been deleted. "
            "Try again, or give another mirror with data.url=…"
        )
    os.replace(part, target)
    _forget(part)


def md5_of(file: Path) -> str:
    """Return the MD5 sum of a file, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Hold a lock between processes, on a file that is left behind. Waits for its turn."""
    try:
        import fcntl
    except ImportError:  # Windows: two processes that start together both download
        yield
        return
    with file.open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"Waiting for another process that holds {file} …", file=sys.stderr)
            fcntl.flock(stream, fcntl.LOCK_EX)
        except OSError:  # a file system without locks: the checks hold, work may be done twice
            pass
        yield


def _transfer(url: str, part: Path) -> None:
    """Make one connection and append what it brings to ``part`` until the file is whole."""
    state = _read_state(part)
    start = _length(part) if state else 0
    if start and start == state.get("size"):
        return
    headers = {"User-Agent": "vitlab"}
    if start:
        headers["Range"] = f"bytes={start}-"
        # Another mirror knows nothing of this one's tag, and would send the whole file again.
        if state.get("url") == url and state.get("tag"):
            headers["If-Range"] = state["tag"]
    try:
        response = _open(urllib.request.Request(url, headers=headers))
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and start:  # nothing follows: the part is whole, or of something else
            if _range_total(error.headers.get("Content-Range")) == start:
                return
            _forget(part)
            _transfer(url, part)
            return
        raise DownloadError(f"{url} answered {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise DownloadError(_reason(error)) from error
    with response:
        total = _expected_size(response)
        if getattr(response, "status", None) == 206:
            total = _range_total(response.headers.get("Content-Range"))
            begins = _range_start(response.headers.get("Content-Range"))
            if begins != start or (state.get("size") and total != state["size"]):
                _forget(part)  # it is another file by now
                _transfer(url, part)
                return
        else:  # a server that knows no ranges, or another file than before: from the beginning
            start = 0
        tag = response.headers.get("ETag")
        if tag is None or tag.startswith("W/"):  # a weak tag may not be used to continue
            tag = response.headers.get("Last-Modified")
        if total is not None and shutil.disk_usage(part.parent).free < total - start:
            raise UserError(
                f"{part.parent} has no room for {_mib(total - start)}. Make room or set data.root."
            )
        if start == 0:
            part.write_bytes(b"")
            _state_file(part).write_text(json.dumps({"url": url, "size": total, "tag": tag}))
        _receive(response, part, start, total, url)


def _receive(response: Any, part: Path, start: int, total: int | None, url: str) -> None:
    done = start
    # read1 hands over what has come; read would wait for a full block, and lose
    # what it has on a stall.
    read = getattr(response, "read1", response.read)
    with part.open("ab") as stream, _progress(url, start, total) as advance:
        while True:
            try:
                block = read(BLOCK)
            except TimeoutError as error:
                raise DownloadError(f"{url} sent nothing for {STALL_SECONDS:.0f} s") from error
            except (OSError, http.client.HTTPException) as error:
                raise DownloadError(f"the connection broke: {_reason(error)}") from error
            if not block:
                break
            stream.write(block)
            done += len(block)
            advance(len(block))
    if total is not None and done < total:
        raise DownloadError(f"the connection ended after {_mib(done)} of {_mib(total)}")


def _open(request: urllib.request.Request) -> Any:
    """Open an address, giving up after ``ANSWER_SECONDS`` whatever it is that hangs.

    The time limit of a socket counts for each address of a name and not for finding them, which
    alone can take half a minute without a network; a thread can be left behind.
    """
    answer: queue.Queue[Any] = queue.Queue()

    def work() -> None:
        try:
            answer.put(urllib.request.urlopen(request, timeout=STALL_SECONDS))
        except Exception as error:  # handed over to the caller
            answer.put(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        result = answer.get(timeout=ANSWER_SECONDS)
    except queue.Empty:
        raise TimeoutError(f"no answer from {request.host or 'it'} in {ANSWER_SECONDS:.0f} seconds") from None
    if isinstance(result, Exception):
        raise result
    return result


def _reason(error: BaseException) -> str:
    inner = getattr(error, "reason", None)
    if isinstance(inner, BaseException):
        error = inner
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text)


def _length(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0


def _state_file(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _read_state(part: Path) -> dict[str, Any]:
    try:
        state = json.loads(_state_file(part).read_text())
        return state if isinstance(state, dict) else {}
    except (OSError, ValueError):
        return {}


def _forget(part: Path) -> None:
    for file in (part, _state_file(part)):
        with contextlib.suppress(FileNotFoundError):
            file.unlink()


def _expected_size(response: Any) -> int | None:
    length = response.headers.get("Content-Length")
    return int(length) if length and length.isdigit() else None


def _range_start(header: str | None) -> int | None:
    found = re.fullmatch(r"bytes (\d+)-\d+/(?:\d+|\*)", header or "")
    return int(found[1]) if found else None


def _range_total(header: str | None) -> int | None:
    found = re.fullmatch(r"bytes (?:\d+-\d+|\*)/(\d+)", header or "")
    return int(found[1]) if found else None


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"


@contextmanager
def _progress(url: str, start: int, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show a bar on a terminal, or a line every tenth in a log; yield ``advance(bytes)``."""
    title = f"Downloading {url.rpartition('/')[2]}"
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(title, total=total, completed=start)
            yield lambda size: bar.advance(task, size)
        return
    done, tenth = start, -1

    def advance(size: int) -> None:
        nonlocal done, tenth
        done += size
        if total and (now := done * 10 // total) > tenth:
            tenth = now
            print(f"{title}: {_mib(done)} of {_mib(total)}", file=sys.stderr)

    yield advance
