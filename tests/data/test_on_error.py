"""``data.on_error=skip``: a data set without its broken files is one that never had them."""

import os
import shutil

import numpy as np
import pytest

from tests.conftest import TINY, same_weights, summary
from tests.data.helpers import config, decoded, image_tree
from vitlab.core.errors import UserError
from vitlab.core.run_folder import RunFolder
from vitlab.data import datasets
from vitlab.data import decode as images_module
from vitlab.training.run import run

BROKEN = ("a/007.png", "b/100.png")  # of 240 images in each run below


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Return two folders of one name: with two broken files, of 1 % that may be, and without them."""
    folder = tmp_path_factory.mktemp("sets")
    image_tree(folder / "whole" / "set", {"a": 120, "b": 120})
    for name in BROKEN:
        (folder / "whole" / "set" / name).unlink()
    broken = shutil.copytree(folder / "whole" / "set", folder / "broken" / "set")
    (broken / BROKEN[0]).write_bytes(b"no image")
    (broken / BROKEN[1]).symlink_to("nowhere.png")
    return broken, folder / "whole" / "set"


@pytest.fixture
def broken(sets, tmp_path):
    return shutil.copytree(sets[0], tmp_path / "set", symlinks=True)


def build(root, kind="image_folder", **changes):
    options = {"root": str(root), "image_size": 8, "batch_size": 1, "num_workers": 0, "val_size": 0}
    options["on_error"] = "skip"
    return datasets.build(config(kind, **options | changes))


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("kind", ["image_folder", "image_list"])
def test_the_rest_is_as_if_broken_files_had_never_been_there(broken, sets, tmp_path, kind, cached):
    roots = [broken, sets[1]]
    if kind == "image_list":
        (broken / BROKEN[1]).unlink()
        (broken / BROKEN[1]).write_bytes(b"")  # a list that names what is not there is wrong itself
        rows = [f"{c}/{i:03d}.png" for c in "ab" for i in range(120)]
        roots = [broken / "all.csv", broken / "rest.csv"]
        for file, left_out in zip(roots, ((), BROKEN), strict=True):
            lines = [f"{row},{row[0]}" for row in rows if row not in left_out]
            file.write_text("\n".join(["path,label", *lines]))
    found = build(roots[0], kind, cache=str(tmp_path / "cache") if cached else None)
    expected = build(roots[1], kind, on_error="stop")
    assert (found.classes, found.sizes) == (("a", "b"), expected.sizes)
    assert sum(found.sizes.values()) == 238
    assert found.fingerprint() == expected.fingerprint()
    for split in found.sizes:
        for one, other in zip(decoded(found, split), decoded(expected, split), strict=True):
            assert np.array_equal(one, other)
    assert expected.notes == []
    (note,) = found.notes
    assert note.startswith("left out 2 of 240 train files that cannot be read as images:\n")
    assert all(name in note for name in BROKEN)
    assert [text.partition(":")[0][-9:] for text in found.skipped] == [*BROKEN]


def test_more_than_one_percent_stops_as_without(broken):
    (broken / "a/000.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"3 of 240 train files cannot be .* too many(.|\n)*a/000\.png"):
        build(broken)


def test_one_file_may_be_broken_in_the_smallest_set_but_not_the_last_of_a_class(tmp_path):
    image_tree(tmp_path, {"train/a": 5, "train/b": 1, "test/a": 1, "test/b": 1})
    (tmp_path / "train/a/002.png").write_bytes(b"")
    assert build(tmp_path).sizes == {"train": 5, "test": 2}
    image_tree(tmp_path, {"train/a": 5})
    (tmp_path / "train/b/000.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"1 of 6 train files .* leaves none of b:"):
        build(tmp_path)


def test_files_are_looked_at_once_and_those_that_were_broken_each_time(broken, tmp_path, monkeypatch):
    reads = []
    real = images_module.read_image
    monkeypatch.setattr(images_module, "read_image", lambda path, *a: reads.append(path) or real(path, *a))
    folder = image_tree(tmp_path / "real", {"": 1})
    (broken / BROKEN[1]).unlink()
    (broken / BROKEN[1]).write_bytes(b"x")
    sizes = []
    for expected in (240, 2, 240, 2):
        reads.clear()
        sizes.append(sum(build(broken, cache=str(tmp_path / "cache")).sizes.values()))
        assert len(reads) == expected
        if len(sizes) == 2:
            shutil.copy(folder / "000.png", broken / BROKEN[0])  # mended, of another size
            (broken / "a/000.png").write_bytes(b"x")
    assert sizes == [238, 238, 238, 238]
    assert len([*(tmp_path / "cache").glob("*broken*.json")]) == 1, "older ones go"


def test_what_could_not_be_read_for_a_moment_counts_again(broken, tmp_path, monkeypatch):
    real, shaky = images_module.read_image, broken / "a/000.png"

    def failing(path, *rest):
        if path == shaky:
            raise OSError("input/output error")
        return real(path, *rest)

    (broken / BROKEN[0]).unlink()
    with monkeypatch.context() as patch:
        patch.setattr(images_module, "read_image", failing)
        assert sum(build(broken, cache=str(tmp_path / "cache")).sizes.values()) == 237
    assert sum(build(broken, cache=str(tmp_path / "cache")).sizes.values()) == 238


def options(root, *more):
    kept = [option for option in TINY if not option.startswith("data")]
    own = "data=image_folder data.image_size=16 data.batch_size=16 data.on_error=skip data.num_workers=2"
    return [*kept, *own.split(), "trainer.max_epochs=1", f"data.root={root}", *more]


def test_a_run_trains_as_without_the_files_and_resumes_on_the_same(train, stopped, broken, sets, tmp_path):
    """In memory with a cache; and streamed by workers without one, stopped and resumed."""
    cached = f"data.cache={tmp_path}/cache"
    whole = train(base=options(sets[1], cached, "data.on_error=stop"), name="whole")
    skipping = train(base=options(broken, cached), name="skipping")
    assert same_weights(whole, skipping)
    assert summary(skipping)["metrics"] == summary(whole)["metrics"]
    assert "left out 2 of 240 train files" in (skipping / "train.log").read_text()
    half = stopped(5, base=options(broken, "data.cache=null", "data.in_memory=false"))
    shutil.copy(broken / "a/000.png", broken / "a/keep.tmp")
    os.replace(broken / "a/keep.tmp", broken / BROKEN[0])  # mended
    with pytest.raises(UserError, match=r"the images of set are not those of when .*last.ckpt"):
        run(RunFolder(half))
    (broken / BROKEN[0]).write_bytes(b"no image")
    run(RunFolder(half))
    assert same_weights(whole, half)
