"""evaluate.py as a user runs it: what it writes, what it equals, and what it refuses."""

import json
import shutil
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import TINY, Train, answer_without_torch, slow, summary
from tests.inference.helpers import evaluate, record, rows, save_images
from vitlab.core.errors import UserError
from vitlab.core.files import sha256
from vitlab.core.run_folder import RunFolder
from vitlab.data import datasets
from vitlab.inference import near_duplicates
from vitlab.inference.corruptions import CORRUPTIONS
from vitlab.inference.scores import wilson

FIGURES = {"confusion_matrix.png", "reliability.png", "worst_mistakes.png"}
pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture(scope="module")
def evaluated(trained: Path) -> Path:
    """Its evaluation."""
    evaluate(trained)
    return trained / "evaluation"


def test_the_scores_equal_the_runs_own_test_to_the_last_digit(trained: Path, evaluated: Path) -> None:
    found, own = record(evaluated), summary(trained)["metrics"]
    for key in ("accuracy", "accuracy_top5", "loss"):
        assert found[key] == own[f"test/{key}"]
    assert found["own_test"]["equal"] is True
    assert (found["accuracy_low"], found["accuracy_high"]) == wilson(round(found["accuracy"] * 41), 41)
    recalls = {score["name"]: score["recall"] for score in found["per_class"]}
    assert recalls == pytest.approx(summary(trained)["per_class"])


def test_everything_stands_in_one_folder(trained: Path, evaluated: Path) -> None:
    assert {path.name for path in evaluated.iterdir()} == FIGURES | {"evaluation.json", "predictions.csv"}
    found = record(evaluated)
    assert found["sha256"] == sha256(trained / "checkpoints" / "best.ckpt")
    assert (found["weights"], found["precision"], found["images"]) == ("plain", "32-true", 41)
    assert found["command"].startswith("python evaluate.py")
    assert np.array(found["confusion"]).sum() == sum(score["support"] for score in found["per_class"]) == 41


def test_a_line_an_image_says_what_it_is_called(evaluated: Path) -> None:
    found, lines = record(evaluated), rows(evaluated / "predictions.csv")
    assert [int(line["row"]) for line in lines] == list(range(41))
    right = [line["label"] == line["prediction"] for line in lines]
    assert np.mean(right) == pytest.approx(found["accuracy"])
    labels = datasets.build(found["data"]).load("test")[1]
    assert [line["label"] for line in lines] == [found["classes"][label] for label in labels]
    assert all(0.1 <= float(line["probability"]) <= 1 for line in lines)


def test_the_temperature_brings_what_it_says(evaluated: Path) -> None:
    found = record(evaluated)
    fitted = found["calibration"]
    assert fitted["fitted_on"] == "16 held-out images of shapes"
    assert 0.05 <= fitted["temperature"] <= 20
    assert fitted["loss_after"] != found["loss"]
    assert 0 <= fitted["ece_after"] <= 1


@pytest.mark.parametrize(
    ("overrides", "weights"),
    [
        (["callbacks.ema.decay=0.5", "data.channels=1"], "ema"),
        (["trainer.precision=bf16-mixed", "trainer.limit_test_batches=3"], "plain"),
        slow(["data.num_classes=null", "augment=randaugment", "data.in_memory=false"], "plain"),
    ],
    ids=str,
)
def test_runs_of_every_kind_equal_their_own_test(overrides: list[str], weights: str, train: Train) -> None:
    folder = train(*overrides)
    evaluate(folder)
    found = record(folder / "evaluation")
    assert found["own_test"]["equal"] is True
    assert found["weights"] == weights


@pytest.mark.slow
def test_a_student_equals_its_own_test_without_its_teacher(train: Train, copied: Path) -> None:
    base = [override for override in TINY if not override.startswith("model")]
    small = ["model=vit_distilled_tiny", "model.dim=16", "model.depth=2", "model.heads=2"]
    folder = train("task=distill", f"task.teacher={copied}", *small, name="student", base=base)
    shutil.rmtree(copied)
    evaluate(folder)
    assert record(folder / "evaluation")["own_test"]["equal"] is True


def test_raw_weights_are_those_before_averaging(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    folder = train("callbacks.ema.decay=0.9")
    evaluate(folder, "--out", folder / "ema")
    evaluate(folder, "--raw", "--out", folder / "raw")
    assert "not compared with the run's own test: it tested the averaged weights" in capsys.readouterr().out
    ema, raw = record(folder / "ema"), record(folder / "raw")
    assert (ema["weights"], raw["weights"]) == ("ema", "raw")
    assert ema["loss"] != raw["loss"]


def test_raw_without_averaging_says_that_it_changes_nothing(
    trained: Path, evaluated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate(trained, "--raw", "--out", tmp_path)
    assert "--raw changes nothing" in capsys.readouterr().out
    assert record(tmp_path)["loss"] == record(evaluated)["loss"]


def test_a_checkpoint_alone_is_enough(trained: Path, evaluated: Path, tmp_path: Path) -> None:
    moved = shutil.copy(trained / "checkpoints" / "best.ckpt", tmp_path / "mine.ckpt")
    evaluate(moved)
    found = record(tmp_path / "evaluation")
    assert found["confusion"] == record(evaluated)["confusion"]
    assert "summary.json is not there" in found["own_test"]["why_not"]


def test_a_difference_to_the_runs_own_test_is_said_with_what_changed(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(trained, tmp_path / "run")
    edited = summary(folder)
    edited["metrics"]["test/loss"] = 2.5
    edited["versions"]["torch"] = "2.0"
    (folder / "summary.json").write_text(json.dumps(edited))
    evaluate(folder)
    own = record(folder / "evaluation")["own_test"]
    assert own["equal"] is False
    assert own["changed"] == [f"torch 2.0 → {version('torch')}"]
    assert "differs from the run's own test: loss 2.5 → " in capsys.readouterr().out


def test_the_hold_out_has_no_temperature_and_the_training_images_have(trained: Path, tmp_path: Path) -> None:
    evaluate(trained, "--split", "val", "--out", tmp_path / "val")
    evaluate(trained, "--split", "train", "--out", tmp_path / "train")
    val, train = record(tmp_path / "val"), record(tmp_path / "train")
    assert (val["images"], train["images"]) == (16, 64)
    assert val["accuracy"] == summary(trained)["metrics"]["val/accuracy"]
    assert "temperature" not in val["calibration"]
    assert "temperature" in train["calibration"]


def test_without_a_hold_out_no_temperature_is_fitted(train: Train, tmp_path: Path) -> None:
    folder = train("data.val_size=0")
    evaluate(folder)
    assert "held no images out" in record(folder / "evaluation")["calibration"]["why_not"]
    with pytest.raises(UserError, match="--split val: no images are held out"):
        evaluate(folder, "--split", "val")


def test_flipping_is_another_row_and_changes_no_other(trained: Path, evaluated: Path, tmp_path: Path) -> None:
    evaluate(trained, "--tta", "flip", "--out", tmp_path)
    found = record(tmp_path)
    flipped = found["tta"]["flip"]
    assert found["loss"] == record(evaluated)["loss"] != flipped["loss"]
    assert flipped["accuracy_low"] < flipped["accuracy"] < flipped["accuracy_high"]
    assert 0 < flipped["p_value"] <= 1


def test_several_runs_are_compared_image_by_image(
    trained: Path, evaluated: Path, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = train("seed=1").rename(tmp_path / "a=b")  # a folder that looks like an override
    first = shutil.copytree(trained, other.parent / "first")
    monkeypatch.chdir(tmp_path)
    evaluate("first", "a=b")
    out = other.parent / "evaluation"
    assert record(first / "evaluation")["loss"] == record(evaluated)["loss"]
    compared = json.loads((out / "comparison.json").read_text())
    assert [run["name"] for run in compared["runs"]] == ["first", "a=b"]
    (pair,) = compared["pairs"]
    said = [rows(folder / "evaluation" / "predictions.csv") for folder in (first, other)]
    right = [np.array([line["label"] == line["prediction"] for line in lines]) for lines in said]
    assert pair["only_one"] == (right[0] & ~right[1]).sum()
    assert pair["only_other"] == (right[1] & ~right[0]).sum()
    differ = [
        i for i, (one, two) in enumerate(zip(*said, strict=True)) if one["prediction"] != two["prediction"]
    ]
    assert [int(line["row"]) for line in rows(out / "differences.csv")] == differ


def test_two_checkpoints_of_a_run_are_two_runs(trained: Path, tmp_path: Path) -> None:
    evaluate(*(trained / "checkpoints" / f"{name}.ckpt" for name in ("best", "last")), "--out", tmp_path)
    own = [record(tmp_path / name)["own_test"] for name in ("best", "last")]
    assert own[0]["equal"] is True
    assert own[1]["why_not"] == "it tested best.ckpt"


def test_runs_on_different_images_are_not_compared(trained: Path, train: Train, tmp_path: Path) -> None:
    other = train("data.num_test=40")
    with pytest.raises(UserError, match=r"different images \(41 of shapes and 40 of shapes\)"):
        evaluate(trained, other, "--out", tmp_path)


def test_corruptions_are_drawn_alike_each_time(
    trained: Path,
    evaluated: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    some = {name: CORRUPTIONS[name] for name in ("noise", "jpeg")}
    monkeypatch.setattr("vitlab.inference.evaluate.CORRUPTIONS", some)
    for name in ("one", "two"):
        evaluate(trained, "--corruptions", "--out", tmp_path / name)
    one, two = ((tmp_path / name / "corruptions.csv").read_text() for name in ("one", "two"))
    assert one == two
    lines = rows(tmp_path / "one" / "corruptions.csv")
    assert [line["strength"] for line in lines] == [*"12345"] * len(some)
    assert len({line["loss"] for line in lines}) == len(lines)  # no two are the same images
    found = record(tmp_path / "one")
    mean = np.mean([float(line["accuracy"]) for line in lines])
    assert found["corruptions"]["mean_accuracy"] == pytest.approx(mean)
    assert found["loss"] == record(evaluated)["loss"]
    assert (tmp_path / "one" / "corruptions.png").exists()
    assert "CIFAR-C-style" in capsys.readouterr().out


def test_near_duplicates_are_found_in_all_training_images_and_left_out(train: Train, tmp_path: Path) -> None:
    for split, number in (("train", 10), ("test", 6)):
        save_images(tmp_path / "photos", ["star", "bar"], split, number, seed=len(split))
    for one, other in ((4, 0), (7, 3)):
        shutil.copy(tmp_path / f"photos/train/bar/{one}.png", tmp_path / f"photos/test/bar/{other}.png")
    base = [*(o for o in TINY if not o.startswith("data")), "data=image_folder", "data.batch_size=4"]
    held = ["data.val_size=0.5", "data.image_size=32"]  # of the two one may be held out
    folder = train(f"data.root={tmp_path / 'photos'}", "data.cache=null", *held, base=base)
    evaluate(folder, "--audit")
    out = folder / "evaluation"
    found = {(line["row"], line["label"], line["train_row"]) for line in rows(out / "near_duplicates.csv")}
    assert found == {("0", "bar", "4"), ("3", "bar", "7")}
    audited = record(out)["audit"]
    said = [line for line in rows(out / "predictions.csv") if line["row"] not in ("0", "3")]
    right = np.mean([line["label"] == line["prediction"] for line in said])
    assert audited["accuracy"] == pytest.approx(right)
    assert (audited["near_duplicates"], audited["share"]) == (2, pytest.approx(2 / 12))
    assert audited["accuracy_low"] <= right <= audited["accuracy_high"]
    assert audited["method"] == near_duplicates.METHOD
    assert (out / "near_duplicates.png").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{tmp}/nothing"], "does not exist"),
        (["{tmp}/lr=0.1"], "does not exist"),
        (["{run}/metrics.csv"], "not a checkpoint|damaged"),
        ([], "the following arguments are required: RUN"),
        (["data=cifar10"], "no RUN is given"),
        (["{run}", "data=cifar11"], "did you mean cifar10"),
        (["{run}", "data.rot=x"], "did you mean data.root"),
        (["{run}", "root=x"], "Did you mean data.root"),
        (["{run}", "model.dim=3"], "evaluated as it is"),
        (["{run}", "data.channels=1"], "this network takes images of 3 channels"),
        (["{run}", "data.num_test=none"], "expected a whole number"),
        (["{run}", "data.normalization=half"], "has no effect"),
        (["{run}", "data=image_folder"], "add data.root=FOLDER"),
        (["{run}", "data=image_folder", "data.root={tmp}/no"], "does not exist"),
        (["{run}", "--split", "tset"], "invalid choice: 'tset'"),
        (["{run}", "--split", "val", "--audit"], "leave --split out"),
        (["{run}", "--out", "{run}/config.yaml"], "nothing can be written"),
    ],
)
def test_a_mistake_gets_one_sentence(arguments: list[str], said: str, trained: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said) as error:
        evaluate(*(argument.format(run=trained, tmp=tmp_path) for argument in arguments))
    assert "\n" not in str(error.value)


def test_a_run_that_is_still_training_is_refused(trained: Path, tmp_path: Path) -> None:
    folder = RunFolder(shutil.copytree(trained, tmp_path / "run"))
    folder.summary.write_text(json.dumps(summary(folder.path) | {"status": "running"}))
    with folder.lock(), pytest.raises(UserError, match="is still training"):
        evaluate(folder.path)


def test_the_run_is_left_as_it_was(trained: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*") if "evaluation" not in path.parts}
    evaluate(trained, "--out", tmp_path)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_mistake_is_answered_without_torch(trained: Path) -> None:
    ended = answer_without_torch("evaluate.py", str(trained), "data.rot=x")
    assert ended.returncode == 1
    assert "did you mean data.root?" in ended.stderr
