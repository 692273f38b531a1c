"""CIFAR from an archive of its format: what is in it is checked, read, and never run."""

import gzip
import io
import os
import pickle
import tarfile
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from tests.data.cifar_archive import ARCHIVE, FOLDER, NAME, cifar, leftovers
from tests.data.helpers import cifar_files, config, md5, python2_pickle, tar_gz
from vitlab.core.errors import UserError
from vitlab.data import datasets
from vitlab.data.cifar import ARCHIVES, Cifar


@pytest.fixture
def placed(tmp_path):
    """Return a folder that holds the archive."""
    (tmp_path / NAME).write_bytes(ARCHIVE)
    return tmp_path


def test_an_archive_that_the_user_placed_needs_no_network(placed):
    assert cifar(placed).sizes["train"] == 100


def test_a_folder_that_the_user_placed_needs_no_network(tmp_path):
    for name, content in cifar_files().items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    assert cifar(tmp_path).sizes["train"] == 100


@pytest.mark.parametrize("missing", ["url", "md5"])
def test_an_address_and_a_sum_are_needed_to_download(tmp_path, missing):
    with pytest.raises(UserError, match=r"data\.url and data\.md5 must be given"):
        cifar(tmp_path, **{missing: None})


def test_other_sizes_and_grayscale(placed):
    color, _ = cifar(placed).load("test")
    gray, _ = cifar(placed, image_size=[16, 20], channels=1).load("test")
    assert gray.shape == (20, 1, 16, 20)
    expected = Image.fromarray(color[3].transpose(1, 2, 0)).convert("L")
    expected = expected.resize((20, 16), Image.Resampling.BILINEAR)
    assert np.array_equal(gray[3, 0], np.asarray(expected))


def test_a_wrong_archive_that_was_placed_there_is_left_alone(tmp_path):
    (tmp_path / NAME).write_bytes(ARCHIVE[:-1])
    with pytest.raises(UserError, match=f"{md5(ARCHIVE[:-1])}, expected {md5(ARCHIVE)}"):
        cifar(tmp_path)
    assert (tmp_path / NAME).read_bytes() == ARCHIVE[:-1]


@pytest.mark.parametrize("path", ["../evil", f"{FOLDER}/../../evil", "/vitlab-evil"])
def test_a_path_that_leads_out_is_refused(tmp_path, path):
    archive = tar_gz(cifar_files() | {path: b"evil"})
    root = tmp_path / "a" / "b"
    root.mkdir(parents=True)
    (root / NAME).write_bytes(archive)
    with pytest.raises(UserError, match="leads out of its folder"):
        cifar(root, md5=md5(archive))
    assert not list(tmp_path.rglob("*evil*"))
    assert not os.path.exists("/vitlab-evil")
    assert leftovers(root) == set()
    assert not (root / FOLDER).exists(), "nothing of it is used"


def member(kind: bytes, name: str = f"{FOLDER}/data_batch_1", size: int = 0) -> bytes:
    """Return an archive of one member, of another kind than a file or with so many zeros."""
    out = io.BytesIO()
    with gzip.open(out, "wb", compresslevel=1) as file:
        header = tarfile.TarInfo(name)
        header.type, header.linkname, header.size = kind, "/etc/passwd", size
        file.write(header.tobuf() + bytes(size) + bytes(1024))
    return out.getvalue()


@pytest.mark.parametrize(
    ("archive", "reason"),
    [
        (member(tarfile.SYMTYPE), "not a plain file"),
        (member(tarfile.LNKTYPE), "not a plain file"),
        (member(tarfile.CHRTYPE), "not a plain file"),
        (member(tarfile.FIFOTYPE), "not a plain file"),
        (tar_gz({name: b"" for name in cifar_files() if "test" not in name}), "lacks .*test_batch"),
        (ARCHIVE[:5000], "cannot be used as CIFAR-10 archive"),
    ],
    ids=["link", "hard link", "device", "pipe", "lacking", "cut"],
)
def test_members_must_be_plain_files_and_all_there(tmp_path, archive, reason):
    (tmp_path / NAME).write_bytes(archive)
    with pytest.raises(UserError, match=reason):
        cifar(tmp_path, md5=md5(archive))


@pytest.mark.parametrize(
    ("kind", "name"),
    [(tarfile.REGTYPE, f"{FOLDER}/data_batch_1"), (tarfile.REGTYPE, "x"), (tarfile.XHDTYPE, "x")],
    ids=["member", "other member", "header"],
)
def test_a_bomb_is_not_unpacked(tmp_path, monkeypatch, kind, name):
    monkeypatch.setattr("vitlab.data.cifar.MAX_UNPACKED", 1 << 20)
    archive = member(kind, name, size=1 << 26)
    (tmp_path / NAME).write_bytes(archive)
    tracemalloc.start()
    with pytest.raises(UserError, match="cannot be used as CIFAR-10 archive: it holds more than 1 MiB"):
        cifar(tmp_path, md5=md5(archive))
    assert tracemalloc.get_traced_memory()[1] < 1 << 24
    tracemalloc.stop()


def test_links_and_devices_beside_the_expected_files_are_not_made(tmp_path):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for number, kind in enumerate((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE)):
            header = tarfile.TarInfo(FOLDER if kind == tarfile.SYMTYPE else f"{FOLDER}/{number}")
            header.type, header.linkname = kind, str(tmp_path.parent)
            tar.addfile(header)
    archive = gzip.compress(out.getvalue()[: 4 * tarfile.BLOCKSIZE] + gzip.decompress(ARCHIVE), mtime=0)
    root = tmp_path / "root"
    root.mkdir()
    (root / NAME).write_bytes(archive)
    assert cifar(root, md5=md5(archive)).sizes["train"] == 100
    assert {f.name for f in (root / FOLDER).iterdir()} == set(ARCHIVES["cifar10"].members)
    assert [f.name for f in tmp_path.iterdir()] == ["root"]


class Evil:
    def __reduce__(self):
        return os.system, ("touch evil",)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (pickle.dumps({b"data": Evil()}, protocol=3), "posix.system|nt.system"),
        (pickle.dumps({b"data": eval}, protocol=3), "eval"),
        (b"", "Ran out of input"),
        (cifar_files()[f"{FOLDER}/data_batch_2"][:500], "data_batch_2"),
        (python2_pickle({b"data": np.zeros((2, 5), np.uint8), b"labels": [0, 1]}), "rows of 3072"),
        (python2_pickle({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0]}), "rows of 3072"),
        (python2_pickle({b"data": np.zeros((1, 3072), np.uint8), b"labels": [10]}), "rows of 3072"),
        (python2_pickle({b"labels": [0]}), "rows of 3072"),
        (pickle.dumps([1]), "dictionary"),
    ],
)
def test_a_damaged_or_hostile_file_is_named_and_runs_nothing(placed, monkeypatch, content, reason):
    monkeypatch.chdir(placed)
    cifar(placed)
    (placed / FOLDER / "data_batch_2").write_bytes(content)
    with pytest.raises(UserError, match=reason) as error:
        cifar(placed)
    assert "data_batch_2" in str(error.value)
    assert not (placed / "evil").exists()


def test_files_written_by_a_newer_python_are_read(tmp_path):
    files = cifar_files()
    for name in [n for n in files if "batch_" in n or "test" in n]:
        files[name] = pickle.dumps(pickle.loads(files[name], encoding="bytes"))
    archive = tar_gz(files)
    (tmp_path / NAME).write_bytes(archive)
    assert cifar(tmp_path, md5=md5(archive)).load("test")[0].shape == (20, 3, 32, 32)


def test_a_missing_file_is_taken_from_the_archive_again(placed):
    cifar(placed)
    (placed / FOLDER / "test_batch").unlink()
    assert cifar(placed).sizes["test"] == 20


def test_the_files_are_read_once(placed, monkeypatch):
    reads = []
    real = Cifar._read_file
    monkeypatch.setattr(Cifar, "_read_file", lambda self, name: reads.append(name) or real(self, name))
    dataset = cifar(placed)
    loaded = [dataset.load(split) for split in ("train", "test")]
    assert sorted(reads) == sorted(dataset.archive.members)
    again = [dataset.load(split) for split in ("train", "test")]
    for (images, labels), (same, same_labels) in zip(loaded, again, strict=True):
        assert np.array_equal(images, same)
        assert np.array_equal(labels, same_labels)


def test_cifar100_has_its_fine_labels(tmp_path):
    pixels = np.zeros((200, 3072), np.uint8)
    batch = {b"data": pixels, b"fine_labels": [n % 100 for n in range(200)], b"coarse_labels": [0]}
    names = {b"fine_label_names": [b"class %d" % n for n in range(100)]}
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for name, content in (("train", batch), ("test", batch), ("meta", names)):
        (folder / name).write_bytes(python2_pickle(content))
    dataset = datasets.build(config("cifar100", root=str(tmp_path), val_size=0))
    assert dataset.classes[99] == "class 99"
    assert dataset.sizes == {"train": 200, "test": 200}
    assert dataset.load("test")[1][150] == 50
