"""Fashion-MNIST from files of its format, placed or served on this machine: found, checked, read."""

import gzip
import os
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

from tests.data.helpers import config, fashion_files, idx, md5, sha256
from vitlab.core.errors import UserError
from vitlab.data import datasets, fashion_mnist

REAL = os.environ.get("VITLAB_FASHION_MNIST_FOLDER")
NAMES = fashion_mnist.FILES


UNPACKED = fashion_files()
PACKED = {key: gzip.compress(content, mtime=0) for key, content in UNPACKED.items()}


def build(root, url="http://127.0.0.1:1", unpacked=UNPACKED, **changes):
    given = {
        "root": str(root),
        "url": url,
        "md5": {key: md5(content) for key, content in PACKED.items()},
        "sha256": sha256(unpacked),
    }
    return datasets.build(config("fashion_mnist", **given | {"val_size": 10, "batch_size": 8} | changes))


def place(folder, files=PACKED, ending=".gz"):
    folder.mkdir(parents=True, exist_ok=True)
    for key, content in files.items():
        (folder / f"{NAMES[key]}{ending}").write_bytes(content)
    return folder


@pytest.fixture
def server(tmp_path):
    """Serve the official files; ``asked`` counts."""
    asked = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            asked.append(self.path)

    folder = place(tmp_path / "served")
    http = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder))
    threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
    http.url, http.asked, http.folder = f"http://127.0.0.1:{http.server_port}/", asked, folder
    yield http
    http.shutdown()
    http.server_close()


def test_it_is_downloaded_once_and_read(tmp_path, server):
    root = tmp_path / "new"
    dataset = build(root, server.url)
    assert dataset.name == "Fashion-MNIST"
    assert dataset.classes[0] == "T-shirt/top"
    assert dataset.classes[9] == "Ankle boot"
    assert dataset.sizes == {"train": 40, "test": 20}
    pixels, targets = dataset.load("train")
    assert pixels.shape == (40, 1, 28, 28)
    assert pixels.dtype == np.uint8
    assert pixels.tobytes() == UNPACKED["train_images"][16:]
    assert targets.dtype == np.int64
    assert targets[:12].tolist() == [*range(10), 0, 1]
    assert dataset.load("test")[0].tobytes() == UNPACKED["test_images"][16:]
    assert len(server.asked) == 4
    build(root, server.url)
    assert len(server.asked) == 4
    assert {f.name for f in (root / "fashion-mnist").iterdir()} == {
        ".lock",
        *(f"{n}.gz" for n in NAMES.values()),
    }


def test_only_what_is_lacking_is_downloaded(tmp_path, server):
    place(tmp_path / "fashion-mnist", {key: PACKED[key] for key in ("train_images", "test_labels")})
    assert build(tmp_path, server.url).sizes["train"] == 40
    assert len(server.asked) == 2


@pytest.mark.parametrize("folder", [".", "fashion-mnist", "FashionMNIST/raw"])
def test_files_that_the_user_placed_need_no_network(tmp_path, folder):
    place(tmp_path / folder)
    assert build(tmp_path).sizes["train"] == 40


def test_any_packing_will_do(tmp_path):
    again = {key: gzip.compress(content, compresslevel=1, mtime=7) for key, content in UNPACKED.items()}
    assert again["train_images"] != PACKED["train_images"]
    assert build(place(tmp_path / "again", again)).sizes["train"] == 40
    assert build(place(tmp_path / "without", UNPACKED, ending="")).sizes["train"] == 40
    assert build(place(tmp_path / "unpacked in place", UNPACKED)).sizes["train"] == 40


def test_a_mirror_with_another_file_leaves_nothing(tmp_path, server):
    (server.folder / f"{NAMES['test_labels']}.gz").write_bytes(b"<html>")
    with pytest.raises(UserError, match="is not the expected file"):
        build(tmp_path / "new", server.url)
    assert not (tmp_path / "new" / "fashion-mnist" / f"{NAMES['test_labels']}.gz").exists()
    place(server.folder)
    assert build(tmp_path / "new", server.url).sizes["test"] == 20


def test_other_bytes_are_refused(tmp_path):
    place(tmp_path, PACKED | {"test_images": gzip.compress(fashion_files(seed=2)["test_images"])})
    with pytest.raises(UserError, match=r"SHA-256 of its unpacked bytes is [0-9a-f]{64}, expected") as error:
        build(tmp_path)
    assert str(tmp_path / NAMES["test_images"]) in str(error.value)


@pytest.mark.parametrize(
    "content", [PACKED["train_images"][:-9], PACKED["train_images"][:200], b"\x1f\x8bno"]
)
def test_a_damaged_file_is_named(tmp_path, content):
    place(tmp_path, PACKED | {"train_images": content})
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte\.gz is not a Fashion-MNIST file"):
        build(tmp_path)


def test_what_unpacks_without_end_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(fashion_mnist, "MAX_UNPACKED", 100_000)
    place(tmp_path, PACKED | {"train_images": gzip.compress(bytes(10_000_000))})
    with pytest.raises(UserError, match="it holds more than"):
        build(tmp_path)


FAULTS = {
    "with 3 dimension": {"train_images": UNPACKED["train_images"] + b"x"},
    "with 1 dimension": {"test_labels": UNPACKED["test_labels"][:6]},
    "it has 20 labels for 40 images": {"train_labels": UNPACKED["test_labels"]},
    "it has labels beyond 9": {"test_labels": idx(np.full(20, 10, dtype=np.uint8))},
}


@pytest.mark.parametrize("reason", FAULTS)
def test_files_of_another_form_are_refused_though_their_sums_are_as_configured(tmp_path, reason):
    unpacked = UNPACKED | FAULTS[reason]
    place(tmp_path, unpacked, ending="")
    with pytest.raises(UserError, match=reason):
        build(tmp_path, unpacked=unpacked)


def test_other_sizes_and_three_channels(tmp_path):
    plain = build(place(tmp_path)).load("test")[0]
    wide = build(tmp_path, image_size=[32, 40], channels=3).load("test")[0]
    assert wide.shape == (20, 3, 32, 40)
    expected = Image.fromarray(plain[3, 0]).convert("RGB").resize((40, 32), Image.Resampling.BILINEAR)
    assert np.array_equal(wide[3].transpose(1, 2, 0), np.asarray(expected))


def test_without_a_network_one_message_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match="Fashion-MNIST is not in") as error:
        build(tmp_path)
    for part in (str(tmp_path), "train-images-idx3-ubyte.gz", "data.root=DIR", "data.url=", "data=shapes"):
        assert part in str(error.value)
    with pytest.raises(UserError, match=r"data\.url and data\.md5 must be given"):
        build(tmp_path, url=None)


@pytest.mark.skipif(not REAL, reason="VITLAB_FASHION_MNIST_FOLDER names no folder with the real files")
def test_the_real_files_are_as_the_config_says():
    dataset = datasets.build(config("fashion_mnist", root=REAL))
    assert dataset.sizes == {"train": 60_000, "test": 10_000}
    for split, each in (("train", 6_000), ("test", 1_000)):
        pixels, targets = dataset.load(split)
        assert pixels.shape[1:] == (1, 28, 28)
        assert np.bincount(targets).tolist() == [each] * 10
