"""The decoded cache: made once, right or not there, never in the way."""

import errno
import os
import pickle
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest

from tests.data.helpers import config, decoded, image_tree, save
from vitlab.core.errors import UserError
from vitlab.data import datasets
from vitlab.data import decode as images_module
from vitlab.data.cache import CachedImages
from vitlab.data.decode import ImageFiles


@pytest.fixture
def root(tmp_path):
    folder = image_tree(tmp_path / "set", {"train/a": 3, "train/b": 2, "test/a": 1, "test/b": 1})
    for file in folder.rglob("*.png"):  # all of one time and size: a name may be all that tells them apart
        file.write_bytes(file.read_bytes().ljust(100, b"\0"))
        os.utime(file, ns=(10**18, 10**18))
    return folder


@pytest.fixture
def reads(monkeypatch):
    """Count the files that are decoded."""
    names = []
    real = images_module.read_image

    def counting(path, *rest):
        names.append(path.name)
        return real(path, *rest)

    monkeypatch.setattr(images_module, "read_image", counting)
    return names


def build(root, kind="image_folder", **changes):
    options = {"cache": str(root.parent / "cache"), "image_size": 8, "batch_size": 1, "val_size": 0}
    return datasets.build(config(kind, **options | {"root": str(root)} | changes))


def raising(error):
    def call(*args):
        raise error

    return call


def caches(root):
    return sorted(root.parent.glob("cache/*.npy"))


def leftovers(root):
    return [f for f in root.parent.glob("cache/.*") if f.suffix != ".lock"]


def test_a_split_is_decoded_once_and_when_it_is_asked_for(root, reads):
    first = build(root)
    assert reads == []
    images, labels = first.load("train")
    assert isinstance(images, CachedImages)
    assert len(reads) == 5
    assert ["-train-8x8x3-" in f.name for f in caches(root)] == [True], "test waits for its turn"
    assert images[np.array([4, 0])][:, 0, 0, 0].tolist() == [1, 0]
    again = decoded(build(root), "train")
    assert len(reads) == 5
    expected = decoded(build(root, cache=None), "train")
    assert np.array_equal(again[0], expected[0])
    assert np.array_equal(again[1], labels)
    decoded(build(root), "test")
    assert len(caches(root)) == 2
    assert leftovers(root) == []
    assert first.notes == []


def test_looking_for_a_cache_reads_no_file(root):
    before = decoded(build(root), "train")[0]
    file = root / "train/a/001.png"
    stat = file.stat()
    file.write_bytes(bytes(stat.st_size))
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert np.array_equal(decoded(build(root), "train")[0], before)


EVENTS = {
    "change": lambda root: save(root / "train/a/001.png", (99, 0, 0)),
    "touch": lambda root: os.utime(root / "train/a/001.png", ns=(1, 1)),
    "add": lambda root: save(root / "train/b/009.png", (9, 0, 0)),
    "remove": lambda root: (root / "train/b/000.png").unlink(),
    "rename to be the last": lambda root: (root / "train/b/000.png").rename(root / "train/b/005.png"),
}


@pytest.mark.parametrize("event", EVENTS)
def test_files_that_changed_are_decoded_again_and_the_old_cache_goes(root, event):
    decoded(build(root), "train")
    decoded(build(root), "test")
    old, other = caches(root)[::-1]
    EVENTS[event](root)
    found = decoded(build(root), "train")[0]
    assert np.array_equal(found, decoded(build(root, cache=None), "train")[0])
    assert len(caches(root)) == 2
    assert not old.exists()
    assert other.exists(), "the test files have not changed"


def test_other_sizes_have_caches_of_their_own(root, reads):
    for changes in ({}, {"image_size": 4}, {"channels": 1}, {"image_size": [8, 4]}):
        shape = decoded(build(root, **changes), "train")[0].shape
        assert shape == decoded(build(root, **changes, cache=None), "train")[0].shape
    assert len(caches(root)) == 4
    reads.clear()
    decoded(build(root), "train")
    assert reads == []


def test_the_rules_of_decoding_are_part_of_the_key(root, reads, monkeypatch):
    decoded(build(root), "train")
    monkeypatch.setattr("vitlab.data.cache.RULES_VERSION", 2)
    decoded(build(root), "train")
    assert len(reads) == 10


def test_a_cache_in_use_stays(root):
    used, _ = build(root).load("train")
    EVENTS["add"](root)
    decoded(build(root), "train")
    assert len(caches(root)) == 2
    assert used[np.arange(5)][:, 0, 0, 0].tolist() == [0, 1, 2, 0, 1]
    del used
    EVENTS["touch"](root)
    decoded(build(root), "train")
    assert len(caches(root)) == 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:-1],
        lambda content: content[:100],
        lambda content: b"x" + content[1:],
        lambda content: content.replace(b"(5, 3", b"(4, 3"),
        lambda content: content.replace(b"'|u1'", b"'|i1'"),
    ],
)
def test_a_damaged_cache_is_made_again(root, damage):
    expected = decoded(build(root), "train")[0].copy()
    (file,) = caches(root)
    file.write_bytes(damage(file.read_bytes()))
    again = build(root)
    assert np.array_equal(decoded(again, "train")[0], expected)
    assert isinstance(again.load("train")[0], CachedImages)
    assert again.notes == []


def test_broken_files_are_named_and_leave_nothing(root):
    (root / "train/a/001.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"1 file cannot be read.*\n.*001\.png"):
        build(root).load("train")
    assert caches(root) == leftovers(root) == []


def test_ctrl_c_leaves_nothing_and_the_next_start_makes_it(root, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(images_module, "read_image", raising(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            build(root).load("train")
    assert caches(root) == leftovers(root) == []
    # What a process that was killed leaves.
    (name,) = {f.name for f in root.parent.glob("cache/.*.lock")}
    (root.parent / "cache" / f"{name.removesuffix('.lock')}-0123.77.tmp").write_bytes(b"half")
    decoded(build(root), "train")
    assert leftovers(root) == []


def blocked(root, patch):
    (root.parent / "cache").write_text("a file, not a folder")


def too_small(root, patch):
    patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=500))


def filling_up(root, patch):
    def until_full(self):
        yield np.zeros((1, *self.shape[1:]), dtype=np.uint8)
        raise OSError(errno.ENOSPC, "no space left on device")

    patch.setattr(ImageFiles, "decode", until_full)


def failing(root, patch):
    patch.setattr(os, "fsync", raising(OSError(errno.EIO, "input/output error")))


@pytest.mark.parametrize("trouble", [blocked, too_small, filling_up, failing])
def test_where_no_cache_can_be_the_files_are_read(root, monkeypatch, trouble):
    found = build(root)
    with monkeypatch.context() as patch:
        trouble(root, patch)
        images, _ = found.load("train")
        found.load("train")
    assert isinstance(images, ImageFiles)
    assert np.array_equal(images.decode_all(), decoded(build(root, cache=None), "train")[0])
    assert caches(root) == leftovers(root) == []
    assert len(found.notes) == 1, "said once"
    assert "no cache in data.cache=" in found.notes[0]


def test_two_that_start_together_decode_once(root, reads, capfd, monkeypatch):
    counting = images_module.read_image

    def slowly(*args):
        time.sleep(0.05)
        return counting(*args)

    monkeypatch.setattr(images_module, "read_image", slowly)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: decoded(build(root), "train")[0], range(4)))
    assert len(reads) == 5
    assert all(np.array_equal(images, found[0]) for images in found)


def test_a_cache_beside_the_classes_is_not_a_class(tmp_path):
    root = image_tree(tmp_path / "set", {"a": 10, "b": 10})
    inside = {"cache": str(root / "cache")}
    decoded(build(root, **inside), "train")
    again = build(root, **inside)
    assert again.classes == ("a", "b")
    assert again.notes == []


def test_another_process_opens_the_file_itself(root):
    images, _ = build(root).load("train")
    sent = pickle.dumps(images)
    assert len(sent) < 1000, "the name, not the pixels"
    assert np.array_equal(pickle.loads(sent)[np.arange(5)], images[np.arange(5)])


def test_the_root_may_be_written_otherwise(root, reads, monkeypatch):
    decoded(build(root), "train")
    monkeypatch.chdir(root.parent)
    decoded(build(root.relative_to(root.parent), cache="cache"), "train")
    assert len(reads) == 5


def test_two_splits_of_one_folder_keep_their_caches(tmp_path):
    root = image_tree(tmp_path / "plain", {"a": 6, "b": 6})
    made = [build(root, test_size=2, split_seed=seed) for seed in (0, 1, 0)]
    files = [one.load("train")[0].file for one in made]
    assert files[0] == files[2] != files[1]
    assert all(file.exists() for file in files)


def test_two_lists_in_one_folder_keep_their_caches(root):
    files = []
    for fold in (0, 1, 0):
        file = root / f"fold{fold}.csv"
        lines = f"train/a/00{fold}.png,a,train", "train/b/000.png,b,test", "train/b/001.png,b,train"
        file.write_text("\n".join(("path,label,split", *lines)))
        files.append(build(file, kind="image_list", cache=str(root.parent / "cache")).load("train")[0].file)
    assert files[0] == files[2] != files[1]
    assert all(file.exists() for file in files)
