"""export.py as a user runs it: every folder is usable without vitlab, and nothing wrong is exported."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx as onnx_library
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

import export as verb
import vitlab
from tests.conftest import TINY, Train, answer_without_torch, checkpoint, slow
from vitlab.core.checkpoint import RAW
from vitlab.core.errors import UserError
from vitlab.core.run_folder import RunFolder
from vitlab.data import datasets
from vitlab.inference import onnx

# What a block of code runs after, so that it is on its own.
ALONE = "import sys\nsys.modules['vitlab'] = None\n"


def export(*arguments: object) -> None:
    """Call the verb in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["export.py", *map(str, arguments)])
        verb.main()


def card(folder: Path) -> str:
    return (folder / "README.md").read_text()


def run_card(folder: Path, image: np.ndarray) -> str:
    """Run the code of a card beside an image (C, H, W), without vitlab, and return what it prints."""
    pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
    Image.fromarray(pixels).save(folder / "image.jpg", format="png")  # pillow looks into the file
    (code,) = re.findall(r"```python\n(.*?)```", card(folder), re.DOTALL)
    ended = subprocess.run(
        [sys.executable, "-c", ALONE + code], cwd=folder, capture_output=True, text=True, check=False
    )
    (folder / "image.jpg").unlink()
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def top(path: Path) -> tuple[np.ndarray, str]:
    """Return a test image and the line that a card prints of it, by what vitlab says itself."""
    model = vitlab.load(path)
    image = datasets.build(model.config["data"]).load("test")[0][0]
    with torch.no_grad():
        probabilities = model(torch.from_numpy(image[None])).softmax(-1)[0]
    return image, f"{model.classes[probabilities.argmax()]}: {probabilities.max():.1%}"


@pytest.fixture(scope="module")
def trained(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of a finished run, exported in every format."""
    folder = shutil.copytree(finished, tmp_path_factory.mktemp("exported") / "run")
    for name in ("safetensors", "timm"):
        export(folder, "--format", name)
    export(folder, "--format", "onnx", "--int8", "--force")
    return folder


@pytest.mark.parametrize("name", ["onnx", "timm"])
def test_the_code_of_a_card_says_without_vitlab_what_vitlab_says(trained: Path, name: str) -> None:
    image, expected = top(trained)
    assert run_card(trained / "export" / name, image).splitlines()[0] == expected


def test_weights_by_name_are_read_without_vitlab_and_trained_on_with_it(trained: Path, train: Train) -> None:
    folder = trained / "export" / "safetensors"
    image, _ = top(trained)
    printed = run_card(folder, image)
    weights = load_file(folder / "model.safetensors")
    assert all(f"{name} {tuple(value.shape)}" in printed for name, value in weights.items())
    own = vitlab.load(trained).net.state_dict()
    assert all(torch.equal(weights[name], own[name]) for name in own)
    train(f"model.checkpoint_path={folder}", "trainer.max_epochs=1", name="next")


def test_a_folder_says_what_it_is(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("safetensors", "onnx", "timm"):
        folder = trained / "export" / name
        record = json.loads((folder / "config.json").read_text())
        assert {path.name for path in folder.iterdir()} == {*record["vitlab"]["files"]}
        text = card(folder)
        metrics = json.loads((trained / "summary.json").read_text())["metrics"]
        assert f"{100 * metrics['test/accuracy']:.2f} %" in text
        assert "test: 41 images, looked at once, after training" in text
        assert "hold-out: 16 images" in text
        assert "python train.py data=shapes data.num_train=80" in text
        assert "drawn by code of vitlab, MIT" in text
        assert "n = 1 run, seed 0. Tested: best checkpoint by validation accuracy." in text
    record = json.loads((trained / "export" / "onnx" / "config.json").read_text())
    model = vitlab.load(trained)
    assert record["classes"] == model.classes
    assert (record["image_size"], record["channels"]) == ([16, 16], 3)
    assert [record["mean"], record["std"]] == [model.meta["mean"], model.meta["std"]]
    assert record["architecture"] == "vit_tiny"


def test_an_onnx_file_is_checked_and_so_are_its_8_bits(trained: Path) -> None:
    text = card(trained / "export" / "onnx")
    for batch in (1, 16):
        (found,) = re.findall(rf"differ from PyTorch's by at most (\S+), on 16 .* batches of {batch}\n", text)
        assert float(found) < 1e-5
    assert "accuracy on the 16 images of the hold-out: " in text
    assert "ranges of 64 training images" in text
    float32, int8 = (trained / "export" / "onnx" / name for name in ("model.onnx", "model_int8.onnx"))
    assert int8.stat().st_size < float32.stat().st_size
    _, classes = onnx.open_onnx(int8)(torch.zeros(3, 3, 16, 16, dtype=torch.uint8)).shape
    assert classes == 10


def test_a_checkpoint_alone_is_enough(finished: Path, tmp_path: Path) -> None:
    moved = shutil.copy(finished / "checkpoints" / "best.ckpt", tmp_path / "mine.ckpt")
    image, expected = top(Path(moved))
    export(moved, "--format", "timm")
    folder = tmp_path / "export" / "timm"
    assert run_card(folder, image).splitlines()[0] == expected
    assert "The run's folder was not there at export" in card(folder)
    assert "python train.py data=shapes" in card(folder)


def test_of_averaged_weights_both_kinds_can_be_had_of_grey_images_too(train: Train, tmp_path: Path) -> None:
    folder = train("callbacks.ema.decay=0.5", "data.channels=1")
    saved = checkpoint(folder, "best")
    for name, key in (("ema", "state_dict"), ("raw", RAW)):
        export(folder, "--format", "safetensors", "--weights", name, "--out", tmp_path / name)
        weights = load_file(tmp_path / name / "model.safetensors")
        assert all(torch.equal(value, saved[key][f"net.{own}"]) for own, value in weights.items())
    assert "averaged over training (EMA)" in card(tmp_path / "ema")
    assert "as the optimizer left them" in card(tmp_path / "raw")
    assert "need not be those that were tested" in card(tmp_path / "raw")
    export(folder, "--format", "onnx", "--raw")
    image, expected = top(folder)
    assert run_card(folder / "export" / "onnx", image).splitlines()[0] == expected


def test_a_file_takes_images_of_the_networks_size(train: Train) -> None:
    folder = train("model.image_size=32", "model.patch_size=8", "data.val_size=0", "trainer.max_epochs=1")
    export(folder, "--format", "onnx")
    image, expected = top(folder)
    assert image.shape == (3, 16, 16)
    name, _, probability = run_card(folder / "export" / "onnx", image).splitlines()[0].partition(": ")
    assert name == expected.partition(": ")[0]  # pillow enlarges whole numbers, the network their fractions
    assert float(probability.strip("%")) == pytest.approx(
        float(expected.partition(": ")[2].strip("%")), abs=2
    )
    (file,) = onnx_library.load(folder / "export" / "onnx" / "model.onnx").graph.input
    assert [side.dim_value for side in file.type.tensor_type.shape.dim][1:] == [3, 32, 32]
    assert "learned from images of 16 × 16 pixels, resized to 32 × 32" in card(folder / "export" / "onnx")
    with pytest.raises(UserError, match="this run had none"):
        export(folder, "--format", "onnx", "--int8", "--out", folder / "other")


@pytest.mark.parametrize(
    "model",
    [
        ["model=timm_vit_b16", "model.name=test_vit"],
        slow(["model=torchvision_vit_b16", "model.name=mobilenet_v3_small"]),
    ],
)
def test_weights_of_a_librarys_network_are_opened_by_that_library(train: Train, model: list[str]) -> None:
    base = [override for override in TINY if not override.startswith("model")]
    folder = train(*model, "model.image_size=32", "trainer.max_epochs=1", base=base)
    export(folder, "--format", "safetensors")
    image, expected = top(folder)
    printed = run_card(folder / "export" / "safetensors", image).splitlines()[0]
    name, probability = expected.split(": ")
    assert printed.startswith(f"{name}: ")  # pillow enlarges whole numbers, the network their fractions
    assert float(printed.split(": ")[1].strip("%")) == pytest.approx(float(probability.strip("%")), abs=2)


def test_without_its_data_a_run_is_checked_on_images_that_are_given(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(options: Any) -> Any:
        raise UserError("the data are gone.")

    monkeypatch.setattr(datasets, "build", refuse)
    with pytest.raises(UserError, match=r"the data are gone. .* on real images: give some by --images"):
        export(copied, "--format", "onnx")
    assert not (copied / "export").exists()
    Image.radial_gradient("L").save(tmp_path / "photo.png")
    export(copied, "--format", "onnx", "--images", tmp_path)
    assert "on 1 of the images given, in batches of 1" in capsys.readouterr().out
    export(copied, "--format", "timm")
    assert "on 256 images of noise, as the run's data are not there" in card(copied / "export" / "timm")


def test_a_file_that_computes_something_else_is_not_exported(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = onnx.export_onnx

    def wrong(model: Any, *arguments: Any, **options: Any) -> None:
        with torch.no_grad():
            model.net.head.bias[0] += 0.01
        real(model, *arguments, **options)
        with torch.no_grad():
            model.net.head.bias[0] -= 0.01

    monkeypatch.setattr(onnx, "export_onnx", wrong)
    with pytest.raises(UserError, match=r"differ by up to \de-03 .* so nothing was exported|differ by up to"):
        export(copied, "--format", "onnx")
    assert not (copied / "export" / "onnx").exists()


def test_8_bits_that_cost_too_much_are_not_exported_unless_forced(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = onnx.open_onnx

    def always_wrong(path: Path) -> Callable[[Tensor], Tensor]:
        if "int8" not in path.name:
            return real(path)
        return lambda images: torch.eye(11)[10].expand(len(images), -1)  # no image is of the eleventh class

    monkeypatch.setattr(onnx, "open_onnx", always_wrong)
    with pytest.raises(UserError, match=r"--max-drop allows 1, so nothing was exported; --force"):
        export(copied, "--format", "onnx", "--int8")
    assert not (copied / "export").exists()
    export(copied, "--format", "onnx", "--int8", "--force")
    assert (copied / "export" / "onnx" / "model_int8.onnx").exists()
    export(copied, "--format", "onnx", "--int8", "--max-drop", "100")
    export(copied, "--format", "onnx")
    assert not (copied / "export" / "onnx" / "model_int8.onnx").exists()  # of the earlier export


def test_the_run_is_left_as_it_was(copied: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in copied.rglob("*")}
    export(copied, "--format", "safetensors", "--out", tmp_path / "out")
    assert {path: path.stat().st_mtime_ns for path in copied.rglob("*")} == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "the following arguments are required: RUN"),
        (["{run}"], "the following arguments are required: --format"),
        (["{run}", "--format", "onx"], r"no such format \(did you mean 'onnx'\?\)"),
        (["{tmp}/nothing", "--format", "timm"], "does not exist"),
        (["{run}/metrics.csv", "--format", "timm"], "not a checkpoint|damaged"),
        (["{run}", "--format", "timm", "--int8"], "--int8 has an effect with --format onnx alone"),
        (["{run}", "--format", "onnx", "--force"], "--force has an effect with --int8 alone"),
        (["{run}", "--format", "onnx", "--raw", "--int8"], "choose one"),
        (["{run}", "--format", "onnx", "--int8", "--max-drop", "-1"], "expected points of accuracy"),
        (["{run}", "--format", "onnx", "--weights", "best"], "expected ema or raw"),
        (["{run}", "--format", "safetensors", "--weights", "raw"], "has one kind of weights alone"),
        (["{run}", "--format", "onnx", "--images", "{tmp}/no.jpg"], "there is no image"),
        (["{run}", "--format", "timm", "--images", "{run}/config.yaml"], "cannot be read as an image"),
        (["{run}", "--format", "timm", "--out", "{run}"], "holds something else than an export"),
        (["{run}", "--format", "timm", "--out", "{run}/config.yaml"], "nothing can be written to the folder"),
    ],
)
def test_a_mistake_gets_one_sentence(arguments: list[str], said: str, trained: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        export(*(argument.format(run=trained, tmp=tmp_path) for argument in arguments))


def test_a_network_that_timm_has_not_is_refused_with_the_reason(train: Train) -> None:
    base = [override for override in TINY if not override.startswith("model")]
    folder = train("model=resnet18", "model.width=4", "trainer.max_epochs=1", base=base)
    with pytest.raises(UserError, match=r"--format timm: timm's ResNets halve .* Choose --format onnx"):
        export(folder, "--format", "timm")


def test_a_run_that_is_still_training_is_refused(copied: Path) -> None:
    folder = RunFolder(copied)
    summary = json.loads(folder.summary.read_text())
    folder.summary.write_text(json.dumps(summary | {"status": "running"}))
    with folder.lock(), pytest.raises(UserError, match="is still training"):
        export(copied, "--format", "onnx")


def test_a_mistake_is_answered_without_torch(trained: Path) -> None:
    ended = answer_without_torch("export.py", str(trained), "--format", "onxx")
    assert ended.returncode == 1
    assert "did you mean 'onnx'?" in ended.stderr
