"""What every data set keeps to, found by globbing conf/data, and the checks that they share."""

import re
import subprocess
import sys

import numpy as np
import pytest

from tests.data.helpers import CONF, ROOT, cifar_files, config, decoded, fashion_files, image_tree, sha256
from vitlab.config import preflight
from vitlab.core.errors import UserError
from vitlab.data import datasets
from vitlab.data.fashion_mnist import FILES

SHARED = {"kind", "root", "image_size", "channels", "num_classes", "batch_size", "val_size", "split_seed"}
SHARED |= {"in_memory", "num_workers", "normalization"}


def example(kind, place, **changes):
    """Return a config of the kind and, on disk, the least that it can be built from."""
    options = {"val_size": 2, "batch_size": 4}
    if kind == "cifar100":
        pytest.skip("read in test_cifar")
    if kind == "cifar10":
        options["root"] = str(place)
        (place / "cifar-10-batches-py").mkdir(exist_ok=True)
        for name, content in cifar_files().items():
            (place / name).write_bytes(content)
    elif kind == "fashion_mnist":
        files = fashion_files()
        options |= {"root": str(place), "sha256": sha256(files)}
        for key, content in files.items():
            (place / FILES[key]).write_bytes(content)
    elif kind == "shapes":
        options |= {"num_train": 40, "num_test": 20}
    else:
        image_tree(place, {"a": 10, "b": 10})
        options["root"] = str(place)
        if kind == "image_list":
            rows = [f"{c}/{i:03d}.png,{c}" for c in "ab" for i in range(10)]
            (place / "list.csv").write_text("path,label\n" + "\n".join(rows))
            options["root"] = str(place / "list.csv")
    return config(kind, **options | changes)


@pytest.mark.parametrize("kind", [file.stem for file in sorted(CONF.glob("*.yaml"))])
@pytest.mark.parametrize(("size", "channels"), [(16, 3), ([12, 20], 1)])
def test_the_contract(kind, size, channels, tmp_path):
    assert set(config(kind)) >= SHARED, "every data set takes the shared options"
    dataset = datasets.build(example(kind, tmp_path, image_size=size, channels=channels))
    assert dataset.notes == []
    assert dataset.channels == channels
    assert isinstance(dataset.on_disk, bool)
    assert {"train", "test"} <= set(dataset.sizes) <= {"train", "val", "test"}
    shape = (size, size) if isinstance(size, int) else tuple(size)
    assert dataset.shape == shape
    for split, number in dataset.sizes.items():
        images, labels = decoded(dataset, split)
        assert images.shape == (number, channels, *shape)
        assert images.dtype == np.uint8
        assert labels.shape == (number,)
        assert labels.dtype == np.int64
        assert set(labels.tolist()) == set(range(len(dataset.classes)))
        assert np.array_equal(decoded(dataset, split)[0], images), "decoding is deterministic"


def test_building_needs_no_torch(tmp_path):
    image_tree(tmp_path, {"a": 10, "b": 10})
    code = """
import sys, yaml
from tests.data.helpers import config
from vitlab.data import datasets
root = sys.argv[1]
small = dict(num_train=20, num_test=20, val_size=0, batch_size=4)
datasets.build(config("shapes", **small)).load("train")
datasets.build(config("image_folder", root=root, batch_size=4, val_size=0))
try:
    datasets.build(config("cifar10", root=root, url="http://127.0.0.1:1/x"))
except Exception as error:
    assert "shapes" in str(error)
assert "torch" not in sys.modules and "lightning" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=60, cwd=ROOT)


def test_a_hold_out_of_all_images_is_refused(tmp_path):
    with pytest.raises(UserError, match="val_size=40"):
        datasets.build(example("shapes", tmp_path, val_size=40))


@pytest.mark.parametrize(
    "typed",
    [
        "data.kind=shape",
        "data.image_size=0",
        "data.channels=4",
        "data.val_size=-1",
        "data.split_seed=a",
        "data.num_test=5",
        "data.num_workers=-1",
        "data.normalization=datasets",
        "data.normalization=null",
        "data.normalization={mean:[0.5,0.5,0.5]}",
        "data.normalization={mean:[0.5],std:[0.5]}",
        "data.normalization={mean:[128,128,128],std:[0.5,0.5,0.5]}",
        "data.normalization={mean:[0,0,0],std:[0.5,0,0.5]}",
    ],
)
def test_other_mistakes_are_found_in_the_config(typed):
    with pytest.raises(UserError, match=re.escape(typed.split("=")[0])):
        preflight(["data=shapes", typed])


@pytest.mark.parametrize("typed", ["data=image_folder", "data=image_list", "data=cifar10 data.root=null"])
def test_a_config_must_say_where_the_images_are(typed):
    with pytest.raises(UserError, match=r"add data\.root="):
        preflight(typed.split())


def test_options_without_effect_are_told(tmp_path):
    dataset = datasets.build(example("shapes", tmp_path, root="data"))
    assert len(dataset.notes) == 1
    assert "data.root has no effect" in dataset.notes[0]
