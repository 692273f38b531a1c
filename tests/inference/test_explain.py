"""explain.py as a user runs it: what it writes, and what it refuses."""

import csv
import json
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image

import explain as verb
from tests.conftest import TINY, Train, answer_without_torch
from vitlab.core.errors import UserError
from vitlab.core.run_folder import RunFolder
from vitlab.inference import methods
from vitlab.inference.faithfulness import Score


def explain(*arguments: object) -> None:
    """Call the verb in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["explain.py", *map(str, arguments)])
        verb.main()


def rows(out: Path) -> list[dict[str, str]]:
    with open(out / "scores.csv", newline="") as file:
        return [*csv.DictReader(file)]


@pytest.fixture(scope="module")
def trained(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of a finished run, to write into."""
    return shutil.copytree(finished, tmp_path_factory.mktemp("explained") / "run")


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photos") / "a photo.jpg"
    Image.radial_gradient("L").convert("CMYK").resize((90, 60)).save(path)
    return path


def test_test_images_are_drawn_and_scored(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    explain(trained, "--num-test", 6)
    out = trained / "explain"
    table = rows(out)
    assert [*table[0]] == [*Score.__annotations__]
    pairs = {(row["method"], row["network"]) for row in table}
    expected = {(name, network) for name in methods.USUAL for network in ("trained", "random")}
    assert pairs == expected | {("random", "trained")}
    assert {row["n"] for row in table} == {"6"}
    record = json.loads((out / "explain.json").read_text())
    assert len(record["images"]) == 6
    assert all(image["label"] in record["classes"] for image in record["images"])
    right = [image["label"] == image["class"] for image in record["images"]]
    pictures = sorted(path.name for path in out.glob("0*.png"))
    assert len(pictures) == min(4, sum(right)) + min(4, right.count(False))
    assert (out / "overview.png").exists()
    said = capsys.readouterr().out
    assert "6 of 6 images explained" in said
    assert "gradient_rollout" in said


def test_files_are_drawn_at_their_own_size_and_heads_where_asked(
    trained: Path, photo: Path, tmp_path: Path
) -> None:
    explain(
        trained, photo, "--method", "attention,rollout", "--layers", "1", "--heads", "all", "--out", tmp_path
    )
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        "000_a photo.png",
        "000_a photo_heads.png",
        "overview.png",
        "scores.csv",
        "explain.json",
    }
    assert {row["low"] for row in rows(tmp_path)} == {""}  # one image has no interval
    (image,) = json.loads((tmp_path / "explain.json").read_text())["images"]
    assert image["label"] is None
    assert {*image["maps"]} == {"attention", "rollout"}


def test_a_checkpoint_alone_is_enough(trained: Path, photo: Path, tmp_path: Path) -> None:
    moved = shutil.copy(trained / "checkpoints" / "best.ckpt", tmp_path / "mine.ckpt")
    explain(moved, photo, "--method", "rollout")
    explain(trained, photo, "--method", "rollout", "--out", tmp_path / "other")
    assert rows(tmp_path / "explain") == rows(tmp_path / "other")


def test_a_network_without_tokens_has_the_methods_that_work(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = [override for override in TINY if not override.startswith("model")]
    folder = train("model=resnet18", "model.width=4", "trainer.max_epochs=1", base=base)
    explain(folder, "--num-test", 2, "--method", "all", "--out", tmp_path / "out")
    assert "note: ResNet has no attention of all tokens to all" in capsys.readouterr().out
    used = {row["method"] for row in rows(tmp_path / "out")}
    assert used == {*methods.CAMS, *methods.PIXELS, "random"}
    with pytest.raises(UserError, match="ResNet has no attention"):
        explain(folder, "--method", "rollout,gradcam")


def test_the_same_again_gives_the_same(trained: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        explain(trained, "--num-test", 4, "--out", tmp_path / name)
    one, two = ((tmp_path / name / "scores.csv").read_bytes() for name in ("one", "two"))
    assert one == two


def test_the_run_is_left_as_it_was(trained: Path, photo: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*") if "explain" not in path.parts}
    explain(trained, photo, "--out", tmp_path)
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{tmp}/nothing"], "does not exist"),
        (["{run}", "{tmp}/no.jpg"], "there is no image"),
        (["{run}", "{run}/config.yaml"], "cannot be read as an image"),
        (["{run}", "--method", "grad_cam"], r"no such method \(did you mean 'gradcam'\?\)"),
        (["{run}", "--layers", "2"], r"--layers 2: this network has 2 layers: choose 0 to 1"),
        (["{run}", "--heads", "0,5"], r"--heads 5: this network has 2 heads"),
        (["{run}", "--heads", "-1"], "expected"),
        (["{run}", "--layers", "first"], "expected whole numbers from 0"),
        (["{run}", "--num-test", "0"], "expected 1 or more"),
        (["{run}", "--num-test", "some"], "invalid int value"),
        ([], "the following arguments are required: RUN"),
        (["{run}/metrics.csv"], "not a checkpoint|damaged"),
    ],
)
def test_a_mistake_gets_one_sentence(arguments: list[str], said: str, trained: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said) as error:
        explain(*(argument.format(run=trained, tmp=tmp_path) for argument in arguments))
    assert "\n" not in str(error.value)


def test_a_run_that_is_still_training_is_refused(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    summary = json.loads(folder.summary.read_text())
    folder.summary.write_text(json.dumps(summary | {"status": "running"}))
    with folder.lock(), pytest.raises(UserError, match="is still training"):
        explain(folder.path)


def test_a_mistake_is_answered_without_torch(trained: Path) -> None:
    ended = answer_without_torch("explain.py", str(trained), "--method", "rolout")
    assert ended.returncode == 1
    assert "did you mean 'rollout'?" in ended.stderr
