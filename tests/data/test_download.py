"""A data set from a server on this machine: fetched once, resumed, checked, and what servers do wrong."""

import contextlib
import functools
import itertools
import re
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from tests.conftest import wait_for
from tests.data.cifar_archive import ARCHIVE, FOLDER, NAME, cifar, leftovers
from tests.data.helpers import ROOT, md5, tar_gz
from vitlab.core.errors import UserError
from vitlab.data import download


class Server:
    """Serves one file; what it does wrong and what it was asked are set and read by the test."""

    def __init__(self):
        self.content = ARCHIVE
        self.ranges = True  # does it know Range
        self.cut = None  # bytes after which it hangs up
        self.pause = 0.0  # seconds before it answers
        self.silent = False  # it takes the request and says nothing
        self.asked = []  # the Range header of each request
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                asked = self.headers.get("Range")
                outer.asked.append(asked)
                time.sleep(3 if outer.silent else outer.pause)
                if outer.silent:
                    return
                size, start = len(outer.content), 0
                if asked and outer.ranges:
                    start = int(asked.removeprefix("bytes=").rstrip("-"))
                    self.send_response(206 if start < size else 416)
                    place = f"{start}-{size - 1}" if start < size else "*"
                    self.send_header("Content-Range", f"bytes {place}/{size}")
                else:
                    self.send_response(200)
                self.send_header("Content-Length", str(max(0, size - start)))
                self.end_headers()
                stop = None if outer.cut is None else start + outer.cut
                self.wfile.write(outer.content[start:stop])

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/{NAME}"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def server():
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


def test_it_is_downloaded_once_and_read(tmp_path, server):
    root = tmp_path / "new" / "data"
    dataset = cifar(root, server.url)
    assert dataset.name == "CIFAR-10"
    assert dataset.classes[:3] == ("airplane", "automobile", "bird")
    assert dataset.sizes == {"train": 100, "test": 20}
    images, labels = dataset.load("train")
    assert images.shape == (100, 3, 32, 32)
    assert images.dtype == np.uint8
    assert labels.dtype == np.int64
    assert images[:, 0, 0, 0].tolist() == list(range(100)), "the batches in their order"
    assert labels[:12].tolist() == [*range(10), 0, 1]
    assert dataset.load("test")[0][:, 0, 0, 0].tolist() == list(range(100, 120))
    rows = np.random.default_rng(0).integers(0, 256, (20, 3072), dtype=np.uint8)
    assert images[1, 2, 31, 31] == rows[1, 3071], "channels first, row by row"
    assert leftovers(root) == set()
    cifar(root, server.url)
    assert len(server.asked) == 1


def test_a_mirror_may_be_a_file(tmp_path):
    (tmp_path / "mirror").write_bytes(ARCHIVE)
    assert cifar(tmp_path / "data", (tmp_path / "mirror").as_uri()).sizes["train"] == 100
    with pytest.raises(UserError, match=r"must begin with http"):
        cifar(tmp_path / "other", str(tmp_path / "mirror"))


def test_a_connection_that_breaks_is_taken_up_where_it_broke(tmp_path, server):
    server.cut = len(ARCHIVE) // 2 + 1
    assert cifar(tmp_path, server.url).sizes["train"] == 100
    assert server.asked == [None, f"bytes={server.cut}-"]
    assert leftovers(tmp_path) == set()


def interrupted(root, server, kept=1000):
    """Leave what a killed download leaves: the first ``kept`` bytes."""
    root.mkdir(exist_ok=True)
    part = root / (NAME + ".part")
    server.cut = kept
    with pytest.raises(download.DownloadError):
        download._receive(server.url, part)
    server.cut = None
    server.asked.clear()
    assert part.stat().st_size == kept
    return part


@pytest.mark.parametrize("mirror", ["127.0.0.1", "localhost"])
def test_the_next_run_continues_what_an_interrupted_one_left(tmp_path, server, mirror):
    interrupted(tmp_path, server)
    assert cifar(tmp_path, server.url.replace("127.0.0.1", mirror)).sizes["train"] == 100
    assert server.asked == ["bytes=1000-"]


@pytest.mark.parametrize(("kept", "ranges"), [(1000, True), (1000, False), (len(ARCHIVE) + 5, True)])
def test_where_continuing_is_impossible_it_starts_again(tmp_path, server, kept, ranges):
    part = interrupted(tmp_path, server)
    part.write_bytes(b"x" * kept)  # of another file
    server.ranges = ranges
    assert cifar(tmp_path, server.url).sizes["train"] == 100
    assert leftovers(tmp_path) == set()


def test_a_part_that_was_whole_already_is_checked_and_used(tmp_path, server):
    interrupted(tmp_path, server)
    (tmp_path / (NAME + ".part")).write_bytes(ARCHIVE)
    assert cifar(tmp_path, server.url).sizes["train"] == 100
    assert server.asked == []


def test_a_wrong_file_is_never_taken(tmp_path, server):
    server.content = tar_gz({f"{FOLDER}/data_batch_1": b"other"})
    with pytest.raises(UserError) as error:
        cifar(tmp_path, server.url)
    assert md5(server.content) in str(error.value)
    assert md5(ARCHIVE) in str(error.value)
    assert not (tmp_path / NAME).exists()
    assert not (tmp_path / FOLDER).exists()
    assert leftovers(tmp_path) == set()
    server.content = ARCHIVE
    assert cifar(tmp_path, server.url).sizes["train"] == 100


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:1/none",
        pytest.param("http://vitlab.invalid/x", marks=pytest.mark.slow),
        pytest.param("http://192.0.2.1/x", marks=pytest.mark.slow),
    ],
)
def test_without_a_network_one_message_says_what_to_do_and_nothing_hangs(tmp_path, url):
    start = time.monotonic()
    with pytest.raises(UserError, match="Connection refused" if "127" in url else None) as error:
        cifar(tmp_path, url)
    assert time.monotonic() - start < 15
    message = str(error.value)
    for part in (
        "CIFAR-10",
        str(tmp_path),
        NAME,
        f"{FOLDER}/",
        "data=image_folder data.root=",
        "data=shapes",
    ):
        assert part in message
    assert "data.url=" in message
    assert "kept" not in message


def test_a_silent_server_is_given_up(tmp_path, server, monkeypatch):
    monkeypatch.setattr(download, "ANSWER_SECONDS", 0.3)
    server.silent = True
    with pytest.raises(UserError, match=r"no answer from 127\.0\.0\.1"):
        cifar(tmp_path, server.url)


def test_a_stall_keeps_what_came(tmp_path, server, monkeypatch):
    monkeypatch.setattr(download, "ANSWER_SECONDS", 0.5)
    part = interrupted(tmp_path, server, kept=3000)
    server.silent = True
    with pytest.raises(UserError, match="kept: running again continues"):
        cifar(tmp_path, server.url)
    assert part.stat().st_size == 3000


def answering(handler, content, code=200, **headers):
    handler.send_response(code)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    with contextlib.suppress(OSError):  # whoever asked has heard enough
        for block in content:
            handler.wfile.write(block)


def slowly():
    for byte in ARCHIVE:
        time.sleep(0.03)
        yield bytes([byte])


def a_little(handler):
    start = int((handler.headers.get("Range") or "bytes=0-")[6:-1])
    place = f"bytes {start}-{len(ARCHIVE) - 1}/{len(ARCHIVE)}"
    answering(handler, [ARCHIVE[start : start + 10]], 206, Content_Range=place, Content_Length="1000")


ZEROS = itertools.repeat(bytes(1 << 16))
CHUNKS = itertools.repeat(b"10000\r\n" + bytes(1 << 16) + b"\r\n")
FAULTS = {
    "404": (lambda handler: handler.send_error(404), "answered 404 Not Found"),
    "500": (lambda handler: handler.send_error(500), "answered 500 Internal Server Error"),
    "a redirect loop": (lambda h: answering(h, (), 302, Location=f"/{NAME}"), "answered 302 .*infinite loop"),
    "to another kind": (lambda h: answering(h, (), 302, Location="file:///etc/passwd"), "is not allowed"),
    "a web page": (lambda h: answering(h, [b"\n<html>"]), r"not the expected file \(it is a web page\)"),
    "no HTTP": (lambda h: h.wfile.write(b"\0\1\2"), "its answer is not HTTP"),
    "headers without end": (lambda h: answering(h, (), **{f"x{i}": "" for i in range(200)}), "100 headers"),
    "without end": (lambda h: answering(h, ZEROS), "has more than 1.0 MiB"),
    "chunks without end": (
        lambda h: answering(h, CHUNKS, Transfer_Encoding="chunked"),
        "has more than 1.0 M",
    ),
    "a promise too large": (lambda h: answering(h, (), Content_Length=str(10**18)), "no room for"),
    "a byte at a time": (lambda h: answering(h, slowly()), "sent (only|nothing)"),
    "a few bytes a connection": (a_little, r"the connection ended after (.|\n)* are kept"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_server_at_fault_is_named_and_leaves_nothing_in_the_way(tmp_path, server, monkeypatch, fault):
    answer, message = FAULTS[fault]
    with monkeypatch.context() as patch:
        patch.setattr(server.http.RequestHandlerClass, "do_GET", answer)
        patch.setattr(download, "STALL_SECONDS", 0.3)
        patch.setattr(download, "MAX_BYTES", 1 << 20)
        with pytest.raises(UserError, match=message):
            cifar(tmp_path, server.url)
    assert leftovers(tmp_path) <= {f"{NAME}.part"}
    assert cifar(tmp_path, server.url).sizes["train"] == 100
    assert leftovers(tmp_path) == set()


def test_more_than_promised_is_not_read(tmp_path, server, monkeypatch):
    more = [ARCHIVE, b"more"]
    answer = functools.partial(answering, content=more, Content_Length=str(len(ARCHIVE)))
    monkeypatch.setattr(server.http.RequestHandlerClass, "do_GET", lambda handler: answer(handler))
    assert cifar(tmp_path, server.url).sizes["train"] == 100


@pytest.mark.parametrize(
    "url", ["ftp://127.0.0.1/x", "http://[::1/x", "http://127.0.0.1:port/x", "http://a b/"]
)
def test_an_address_that_is_none_is_named(tmp_path, url):
    with pytest.raises(UserError, match=re.escape(url)):
        cifar(tmp_path, url)


def test_who_waits_for_a_download_that_is_killed_continues_it(tmp_path, server):
    real, release = server.http.RequestHandlerClass.do_GET, threading.Event()

    def hang(handler):
        server.asked.append(None)
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(ARCHIVE)))
        handler.end_headers()
        handler.wfile.write(ARCHIVE[:100_000])  # more than is kept back from the disk
        release.wait(60)

    server.http.RequestHandlerClass.do_GET = hang
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    command = [sys.executable, "-c", DOWNLOAD, str(tmp_path), server.url]
    with subprocess.Popen(command, **pipes) as first:
        part = tmp_path / f"{NAME}.part"
        wait_for(lambda: part.exists() and part.stat().st_size)
        server.http.RequestHandlerClass.do_GET = real
        with subprocess.Popen(command, **pipes) as second:
            assert "Waiting for another process" in second.stderr.readline()
            first.kill()
            first.wait()
            kept = part.stat().st_size
            assert second.communicate(timeout=60)[0].strip() == "100"
        release.set()
    assert server.asked == [None, f"bytes={kept}-"]
    assert leftovers(tmp_path) == set()


# Without the imports of this file, which take seconds.
DOWNLOAD = f"""
import sys
from tests.data.helpers import config
from vitlab.data import datasets, download
download.STALL_SECONDS = 300
options = {{"root": sys.argv[1], "url": sys.argv[2], "md5": "{md5(ARCHIVE)}", "val_size": 10}}
print(datasets.build(config("cifar10", **options)).sizes["train"])
"""


def test_two_processes_download_once(tmp_path, server):
    server.pause = 1.0  # enough for the other to come to the same point
    command = [sys.executable, "-c", DOWNLOAD, str(tmp_path), server.url]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(2)]
    assert [process.communicate(timeout=60)[0].strip() for process in both] == ["100", "100"]
    assert len(server.asked) == 1
