"""Folders and lists of images: layouts, splits, names, and what is wrong with them."""

import os
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

from tests.data.helpers import ROOT, cifar_files, config, decoded, image_tree, save
from vitlab.core.errors import UserError
from vitlab.data import datasets


def folder(root, kind="image_folder", **changes):
    options = {"root": str(root), "image_size": 8, "batch_size": 1, "val_size": 0}
    return datasets.build(config(kind, **options | changes))


def listed(root, text, **changes):
    (root / "list.csv").write_text(text)
    return folder(root / "list.csv", "image_list", **changes)


def counts(dataset, val_size):
    info = datasets.describe(dataset, val_size)
    return info.num_train, info.num_val, info.num_test


def test_train_and_test_folders(tmp_path):
    image_tree(tmp_path, {"train/cat": 3, "train/dog": 2, "test/cat": 1, "test/dog": 2})
    dataset = folder(tmp_path)
    assert dataset.name == tmp_path.name
    assert dataset.classes == ("cat", "dog")
    assert dataset.sizes == {"train": 3 + 2, "test": 3}
    images, labels = decoded(dataset, "train")
    assert images.shape == (5, 3, 8, 8)
    assert images.dtype == np.uint8
    assert labels.tolist() == [0, 0, 0, 1, 1]
    assert images[:, 0, 0, 0].tolist() == [0, 1, 2, 0, 1]
    assert decoded(dataset, "test")[1].tolist() == [0, 1, 1]
    assert dataset.notes == []
    assert "test_size has no effect" in folder(tmp_path, test_size=0.5).notes[0]


def test_val_beside_test_is_the_validation_set_and_alone_the_test_set(tmp_path):
    image_tree(tmp_path, {"train/a": 4, "train/b": 4, "val/a": 2, "val/b": 1})
    alone = folder(tmp_path, val_size=2)
    assert alone.sizes == {"train": 8, "test": 3}
    assert counts(alone, 2) == (6, 2, 3)
    assert "val is the test set" in alone.notes[0]
    image_tree(tmp_path, {"test/a": 1, "test/b": 4})
    both = folder(tmp_path, val_size=None)
    assert both.sizes == {"train": 8, "val": 3, "test": 5}
    assert counts(both, None) == (8, 3, 5)
    assert both.notes == []
    assert "val_size has no effect" in folder(tmp_path, val_size=2).notes[0]


@pytest.mark.parametrize("prefix", ["", "train/"])
def test_class_folders_alone_are_split(tmp_path, prefix):
    image_tree(tmp_path, {f"{prefix}a": 20, f"{prefix}b": 10})
    dataset = folder(tmp_path)
    assert dataset.sizes == {"train": 24, "test": 6}
    assert np.bincount(decoded(dataset, "test")[1]).tolist() == [4, 2]
    assert folder(tmp_path, test_size=9).sizes["test"] == 9
    assert folder(tmp_path, test_size=0.5).sizes["test"] == 15

    def held(**changes):
        images, labels = decoded(folder(tmp_path, **changes), "test")
        return sorted(zip(labels.tolist(), images[:, 0, 0, 0].tolist(), strict=True))

    train_images, train_labels = decoded(dataset, "train")
    trained = set(zip(train_labels.tolist(), train_images[:, 0, 0, 0].tolist(), strict=True))
    assert not trained & set(held())
    assert held() == held()
    assert held() != held(split_seed=1)


def test_numbered_classes_are_in_the_order_of_numbers(tmp_path):
    image_tree(tmp_path, dict.fromkeys(("10", "9", "1"), 5))
    assert folder(tmp_path).classes == ("1", "9", "10")
    image_tree(tmp_path, {"x": 5})
    assert folder(tmp_path).classes == ("1", "10", "9", "x")


def test_labels_rename_and_merge(tmp_path):
    image_tree(tmp_path, {"cat": 5, "dog": 5, "truck": 5, "7": 5})
    dataset = folder(tmp_path, labels={"cat": "pet", "dog": "pet", 7: "seven"})
    assert dataset.classes == ("pet", "seven", "truck")
    assert np.bincount(decoded(dataset, "train")[1]).tolist() == [8, 4, 4]
    with pytest.raises(UserError, match=r"'trck' is not a class.*did you mean 'truck'"):
        folder(tmp_path, labels={"trck": "car"})


def test_hidden_and_other_files_are_left_out(tmp_path):
    image_tree(tmp_path, {"a": 5, "b": 5})
    save(tmp_path / "a" / ".hidden.png")
    save(tmp_path / "stray.png")
    image_tree(tmp_path, {".cache": 1, "__MACOSX": 1})
    (tmp_path / "a" / "notes.txt").write_text("")
    dataset = folder(tmp_path)
    assert dataset.classes == ("a", "b")
    assert sum(dataset.sizes.values()) == 10
    assert "1 files that are not images" in dataset.notes[0]


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({}, "has no class folders"),
        ({"a": 3}, "has 1 class"),
        ({"a": 3, "b": 0}, "class folder .*b holds no images"),
        ({"train/cat": 3, "train/dog": 2, "test/dgo": 1}, "'dgo' has 1 images.*did you mean 'dog'"),
        ({"test/cat": 3, "test/dog": 2}, "no train/<class>/"),
        ({"pets/cat": 3, "pets/dog": 3}, r"It holds folders \(cat, dog\)"),
        ({"train/cat": 3, "train/dog": 2, "test": 0}, "test has no class folders"),
    ],
)
def test_what_is_wrong_with_a_folder(tmp_path, tree, message):
    for name in tree:
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
    image_tree(tmp_path, tree)
    with pytest.raises(UserError, match=message):
        folder(tmp_path)


def test_a_root_of_another_kind(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        folder(tmp_path / "none")
    (tmp_path / "x.csv").write_text("")
    with pytest.raises(UserError, match="data=image_list"):
        folder(tmp_path / "x.csv")
    with pytest.raises(UserError, match="data=image_folder"):
        folder(tmp_path, "image_list")


def test_a_list_with_splits(tmp_path):
    image_tree(tmp_path, {"in/a": 4, "in/b": 4})
    rows = [f"in/{c}/{i:03d}.png,{c},{s}" for c in "ab" for i, s in enumerate(SPLIT)]
    dataset = listed(tmp_path, "\ufeffpath,label,split\n" + "\n".join(rows) + "\n", val_size=None)
    assert dataset.name == "list"
    assert dataset.sizes == {"train": 4, "val": 2, "test": 2}
    images, labels = decoded(dataset, "train")
    assert labels.tolist() == [0, 0, 1, 1]
    assert images[:, 0, 0, 0].tolist() == [0, 1, 0, 1]


SPLIT = ("train", "train", "val", "test")


def test_a_list_without_splits_and_with_other_columns(tmp_path):
    image_tree(tmp_path, {"": 20})
    rows = [f"{i % 2},some,{i:03d}.png" for i in range(20)]
    dataset = listed(tmp_path, "label,note,path\n" + "\n".join(rows))
    assert dataset.sizes == {"train": 16, "test": 4}
    assert dataset.classes == ("0", "1")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column 'path'"),
        ("paht,label\n", "no column 'path' .did you mean 'paht'"),
        ("path;label\n", "found 'path;label'"),
        ("path,label\n", "lists no images to train on"),
        ("path,label\n000.png,a\n9.png,a\n8.png,b\n", "2 lines cannot be used:\n  line 3: .*9.png"),
        ("path,label\n000.png,\n", "line 2: no label"),
        ("path,label\n/dev/zero,a\n\0.png,a\n", "2 lines .*\n  line 2: no file can be read at /dev/zero"),
        (f"path,label\n{'x' * 5000},a\n", "line 2: no file can be read at .*xxx"),
        (f"path,label\n{'x' * 200_000},a\n", "cannot be read as a CSV file"),
        ("path,label\n000.png,a\n../set/./000.png,b\n", "line 3: .* listed already, at line 2"),
        ("path,label,split\n000.png,a,tset\n", "'tset' is none of .*did you mean 'test'"),
        ("path,label,split\n000.png,a,train\n000.png,a,test\n", "listed already, at line 2"),
        ("path,label,split\n000.png,a,test\n001.png,b,test\n", "no images to train on"),
        ("path,label,split\n000.png,a,train\n001.png,b,test\n", "'b' has 1 images in test"),
    ],
)
def test_what_is_wrong_with_a_list(tmp_path, text, message):
    root = image_tree(tmp_path / "set", {"": 2})
    with pytest.raises(UserError, match=message):
        listed(root, text)


def declaring(width: int, height: int) -> bytes:
    """Return a PNG of a few bytes that says it has so many pixels."""
    parts = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b""))
    chunks = [struct.pack(">I", len(data)) + name + data for name, data in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(c + struct.pack(">I", zlib.crc32(c[4:])) for c in chunks)


def text_bomb() -> bytes:
    """Return a PNG with a text of 32 MB, which takes 32 KB."""
    text = b"zTXta\0\0" + zlib.compress(bytes(1 << 25))
    png = declaring(8, 8)
    return png[:33] + struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text)) + png[33:]


BROKEN = {
    "a pipe": (os.mkfifo, "it is not a file"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "it is not a file"),
    "a link to nowhere": (lambda path: path.symlink_to("nowhere.png"), "No such file"),
    "a link to itself": (lambda path: path.symlink_to(path), "symbolic links"),
    "an empty file": (lambda path: path.touch(), "cannot identify"),
    "a text": (lambda path: path.write_text("hello"), "cannot identify"),
    "half an image": (lambda path: path.write_bytes(save(path).read_bytes()[:50]), "truncated|broken"),
    "a bomb of pixels": (lambda path: path.write_bytes(declaring(60_000, 60_000)), "decompression bomb"),
    "a bomb of text": (lambda path: path.write_bytes(text_bomb()), "too large"),
    "a name that is no text": (lambda path: Path(os.fsdecode(b"%b\xff.png" % os.fsencode(path))).touch(), ""),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_no_image_but_called_one_is_named(tmp_path, what):
    make, reason = BROKEN[what]
    root = image_tree(tmp_path, {"train/a": 2, "train/b": 2, "test/a": 1, "test/b": 1})
    make(root / "train" / "a" / "odd.png")
    with pytest.raises(UserError, match=rf"^1 file cannot be read as an image:\n  .*odd\.png.*: .*{reason}"):
        decoded(folder(root), "train")
    assert folder(root, on_error="skip").sizes == {"train": 4, "test": 2}


def test_links_among_the_classes_end(tmp_path):
    image_tree(tmp_path, {"a": 5, "b": 5})
    (tmp_path / "a" / "up").symlink_to("..")
    (tmp_path / "itself").symlink_to("itself")
    assert folder(tmp_path).classes == ("a", "b")
    with pytest.raises(UserError, match="should be a folder of images, but does not exist"):
        folder(tmp_path / "itself")
    (tmp_path / "all").symlink_to(".")
    with pytest.raises(UserError, match=r"all holds no images\. It holds folders \(a, all, b\)"):
        folder(tmp_path)


def test_strange_names_of_classes(tmp_path):
    names = ("two\nlines", "\x1b[31mred", "<b>&amp;", "=1+1", "a" * 255, "ü 猫")
    image_tree(tmp_path, dict.fromkeys(names, 5))
    assert folder(tmp_path).classes == tuple(sorted(names))
    image_tree(tmp_path, {os.fsdecode(b"\xff"): 5})
    with pytest.raises(UserError, match=r"class '\\udcff' is not in UTF-8"):
        folder(tmp_path)


AS_ANYBODY = """
import sys
from tests.data.helpers import config, decoded
from vitlab.core.errors import UserError
from vitlab.data import datasets
for kind, root in zip(sys.argv[1::2], sys.argv[2::2]):
    own = {"url": None, "val_size": 8} if kind == "cifar10" else {"cache": root + "/cache", "num_workers": 0}
    try:
        dataset = datasets.build(config(kind, root=root, image_size=8, **own))
        print(sum(len(decoded(dataset, split)[1]) for split in dataset.sizes), *dataset.notes)
    except UserError as error:
        print(*str(error).splitlines())
"""


@pytest.mark.skipif(os.getuid() == 0 and not shutil.which("setpriv"), reason="root may read all")
def test_what_may_not_be_read_is_named_and_a_folder_that_can_only_be_read_will_do(tmp_path):
    roots = {
        name: image_tree(tmp_path / name, {"a": 30, "b": 30})
        for name in ("root", "class", "file", "list", "ok")
    }
    (roots["list"] / "list.csv").write_text("path,label\na/000.png,a\n")
    forbidden = [roots["root"], roots["class"] / "a", roots["file"] / "a/000.png", roots["list"] / "list.csv"]
    for path in forbidden:
        path.chmod(0)
    for name, content in cifar_files().items():
        (roots["ok"] / name).parent.mkdir(exist_ok=True)
        (roots["ok"] / name).write_bytes(content)
    cifar = shutil.move(roots["ok"] / "cifar-10-batches-py", tmp_path / "cifar" / "cifar-10-batches-py")
    for path in (roots["ok"], cifar.parent, cifar):
        path.chmod(0o555)
    asked = [("image_folder", roots[name]) for name in ("root", "class", "file", "ok")]
    asked += [("image_list", roots["list"] / "list.csv"), ("cifar10", cifar.parent)]
    drop = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.getuid() == 0 else []
    command = [*drop, sys.executable, "-c", AS_ANYBODY, *(str(part) for pair in asked for part in pair)]
    try:
        said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    finally:
        for path in (*forbidden, roots["ok"], cifar.parent, cifar):
            path.chmod(0o755)
    root, class_, file, ok, listing, archive = said.stdout.splitlines() or [said.stderr] * 6
    assert f"{roots['root']} cannot be read: Permission denied" in root
    assert f"Permission denied: {roots['class']}/a" in class_
    assert "1 file cannot be read" in file
    assert "Permission denied" in file
    assert ok.startswith("60 no cache in data.cache=")
    assert "list.csv cannot be read: Permission denied" in listing
    assert archive == "120"
