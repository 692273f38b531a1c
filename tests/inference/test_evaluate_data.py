"""evaluate.py on other images than the run's own, and on its own where they have moved."""

from pathlib import Path
from typing import Any

import pytest

import vitlab
from tests.conftest import TINY, Train
from tests.inference.helpers import evaluate, record, rows, save_images
from vitlab.core.errors import UserError
from vitlab.data import datasets
from vitlab.inference.relabel import with_classes

pytestmark = pytest.mark.usefixtures("undrawn")


def test_other_images_of_some_classes_are_matched_by_name(trained: Path, tmp_path: Path) -> None:
    classes = ["star", "bar"]  # not the network's numbers 0 and 1, nor its order
    for split in ("train", "test"):
        save_images(tmp_path / "photos", classes, split)
    where = ["data=image_folder", f"data.root={tmp_path / 'photos'}", "data.cache=null"]
    evaluate(trained, *where, "--out", tmp_path / "out")
    found = record(tmp_path / "out")
    assert found["data"]["image_size"] == 16
    assert {s["name"] for s in found["per_class"] if s["support"]} == {*classes}
    assert (
        sorted(line["label"] for line in rows(tmp_path / "out" / "predictions.csv"))
        == ["bar"] * 6 + ["star"] * 6
    )
    assert found["own_test"]["why_not"] == "these are other images"
    assert found["calibration"]["fitted_on"] == "16 held-out images of shapes"  # the run's own


@pytest.mark.parametrize("parts", [("",), ("train", "val", "test")])
def test_all_images_of_other_data_are_evaluated_if_so_asked(
    trained: Path, tmp_path: Path, parts: tuple[str, ...]
) -> None:
    for part in parts:
        save_images(tmp_path / "photos", ["star", "bar"], part)
    where = ["data=image_folder", f"data.root={tmp_path / 'photos'}", "data.cache=null", "--split", "all"]
    evaluate(trained, *where, "--out", tmp_path / "out")
    assert record(tmp_path / "out")["images"] == 12 * len(parts)
    said = [line["prediction"] for line in rows(tmp_path / "out" / "predictions.csv")]
    files = [str(file) for file in (tmp_path / "photos").rglob("*.png")]
    predicted = vitlab.load(trained).predict(files)
    assert sorted(said) == sorted(prediction.class_name for prediction in predicted)


def test_labels_get_the_networks_numbers(tmp_path: Path) -> None:
    options = record_options(save_images(save_images(tmp_path, ["b", "a"], "train"), ["b", "a"]))
    dataset = with_classes(datasets.build(options), ["z", "b", "a"])
    assert dataset.load("test")[1].tolist() == [2] * 6 + [1] * 6


def record_options(root: Path) -> dict[str, Any]:
    names = ("labels", "test_size", "val_size", "num_workers", "cache")
    size = {"kind": "image_folder", "root": str(root), "image_size": 8, "channels": 3, "split_seed": 0}
    return size | dict.fromkeys(names)


def test_classes_that_the_network_does_not_know_are_named(trained: Path, tmp_path: Path) -> None:
    for split in ("train", "test"):
        save_images(tmp_path / "photos", ["Star", "bar", "wolf"], split)
    where = ["data=image_folder", f"data.root={tmp_path / 'photos'}", "data.cache=null"]
    with pytest.raises(UserError, match=r"not trained on: Star, wolf \(did you mean 'star'\?\)"):
        evaluate(trained, *where)
    evaluate(trained, *where, "data.labels={Star: star, wolf: disk}", "--out", tmp_path / "out")
    assert record(tmp_path / "out")["images"] == 18


def test_images_that_have_moved_are_still_the_runs_own(train: Train, tmp_path: Path) -> None:
    for split, number in (("train", 12), ("test", 6)):
        save_images(tmp_path / "photos", ["star", "bar"], split, number)
    base = [*(o for o in TINY if not o.startswith("data")), "data=image_folder", "data.batch_size=8"]
    folder = train(f"data.root={tmp_path / 'photos'}", "data.image_size=16", "data.cache=null", base=base)
    moved = (tmp_path / "photos").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"does not exist.* say where they are: data\.root="):
        evaluate(folder)
    evaluate(folder, f"data.root={moved}")
    found = record(folder / "evaluation")
    assert found["own_test"]["equal"] is True
    assert "temperature" in found["calibration"]
    assert "accuracy_top5" not in found  # of two classes
