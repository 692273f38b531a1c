"""vitlab.load and predict: every kind of image is taken for what the same pixels were in training."""

import glob
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import vitlab
from tests.conftest import TINY, summary, train_in
from vitlab.core.errors import UserError
from vitlab.data import datasets
from vitlab.data.decode import CHUNK
from vitlab.inference.load import Classifier
from vitlab.training.evaluation import evaluate, restore_data

ODD = ["größe, [bold]", "7\" 'x'"]  # names of classes


def photograph(path: Path, seed: int) -> None:
    """Write a JPEG large enough that PIL decodes it at a fraction of its size, and turned by its EXIF."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    turned = Image.Exif()
    turned[0x112] = 6
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise).resize((320, 240)).save(path, exif=turned)


def train_on_photographs(folder: Path) -> Path:
    """Train on two classes with odd names, and return the run; the data lie in ``photos`` beside it."""
    for part, number in (("train", 20), ("test", 9)):
        for label, name in enumerate(ODD):
            for place in range(number):
                photograph(folder / "photos" / part / name / f"{place}.jpg", seed=2 * place + label)
    base = [o for o in TINY if not o.startswith(("data=", "data.num_train", "data.num_test"))]
    options = ["data=image_folder", f"data.root={folder}/photos", "data.cache=null", "data.image_size=20"]
    return train_in(folder / "run", "trainer.max_epochs=1", "model.image_size=16", base=base + options)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_on_photographs(tmp_path_factory.mktemp("photographs"))


@pytest.fixture(scope="module")
def model(finished: Path) -> Classifier:
    return vitlab.load(finished)


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)


def test_files_are_predicted_as_the_run_tested_them(photographs: Path) -> None:
    model = vitlab.load(photographs)
    data = restore_data(model.meta, datasets.build(model.config["data"]))
    tested = evaluate(vitlab.load(photographs).net, model.meta, data)
    files = [Path(name) for name in sorted(glob.glob(f"{photographs.parent}/photos/test/*/*.jpg"))]
    files.sort(key=lambda file: model.classes.index(file.parent.name))
    assert [model.classes.index(file.parent.name) for file in files] == tested.labels.tolist()
    found = model.predict(files)
    probabilities = torch.tensor([[*prediction.probabilities.values()] for prediction in found])
    torch.testing.assert_close(probabilities, tested.logits.softmax(1), rtol=1e-5, atol=1e-6)
    right = [file.parent.name == prediction.class_name for file, prediction in zip(files, found, strict=True)]
    assert sum(right) / len(right) == pytest.approx(summary(photographs)["metrics"]["test/accuracy"])


def test_a_prediction_names_all_classes_in_the_order_of_the_logits(
    model: Classifier, image: np.ndarray
) -> None:
    found = model.predict(image)
    assert [*found.probabilities] == model.classes
    assert sum(found.probabilities.values()) == pytest.approx(1)
    assert found.probability == found.probabilities[found.class_name] == max(found.probabilities.values())
    top = found.top(3)
    assert top == sorted(found.probabilities.items(), key=lambda pair: pair[1], reverse=True)[:3]
    assert top[0] == (found.class_name, found.probability)
    assert len(found.top(99)) == len(model.classes)


def test_all_kinds_of_image_are_the_same_pixels(model: Classifier, image: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    Image.fromarray(image).save(path)
    pixels = torch.from_numpy(image).permute(2, 0, 1)
    opaque = np.dstack([image, np.full_like(image[..., 0], 255)])
    kinds = [path, str(path), Image.open(path), image, opaque, pixels, pixels / 255]
    expected = model.predict(image)
    for kind in kinds:
        found = model.predict(kind)
        assert [*found.probabilities.values()] == pytest.approx([*expected.probabilities.values()], rel=1e-4)
    assert len(model.predict(kinds)) == len(kinds)
    assert len(model.predict((path,))) == 1
    assert [p.class_name for p in model.predict(torch.stack([pixels, pixels]))] == [expected.class_name] * 2
    grey = model.predict(image[..., 0])
    assert grey == model.predict(np.repeat(image[..., :1], 3, axis=2))


def test_many_images_go_through_the_network_in_batches_of_bounded_size(model: Classifier) -> None:
    sizes: list[int] = []
    handle = model.net.register_forward_pre_hook(lambda net, given: sizes.append(len(given[0])))
    pixels = torch.zeros(2 * CHUNK + 3, 3, 5, 9, dtype=torch.uint8)
    for images in (pixels, [*pixels]):
        assert len(model.predict(images)) == len(pixels)
    handle.remove()
    assert sizes == [CHUNK, CHUNK, 3] * 2
    assert model.predict([]) == model.predict(pixels[:0]) == []


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ("no.jpg", UserError, "no.jpg cannot be read as an image"),
        (__file__, UserError, "cannot be read as an image"),
        (np.zeros((8, 8, 3)), ValueError, r"expected an array of uint8 .* got float64 \(8, 8, 3\)"),
        (np.zeros((2, 8, 8, 3), np.uint8), ValueError, "expected an array of uint8"),
        (np.zeros((3, 8, 8), np.uint8), ValueError, r"\(H, W, 3\) .* got uint8 \(3, 8, 8\)"),
        (torch.zeros(8, 8), ValueError, r"expected a tensor of shape \(C, H, W\), got \(8, 8\)"),
        (torch.zeros(1, 8, 8), ValueError, r"expected images of shape \(B, 3, H, W\)"),
        (torch.full((3, 8, 8), 200.0), ValueError, "on the 0..1 scale, not normalised, got 200 to 200"),
        (torch.zeros(3, 8, 8, dtype=torch.int64), ValueError, "expected uint8 or floating-point"),
        (7, TypeError, "expected the path of an image file, .* got int"),
        ([None], TypeError, "got NoneType"),
        (Image.new("F", (4, 4)), ValueError, "floating-point pixels"),
    ],
)
def test_what_is_no_image_is_refused(model: Classifier, given: Any, error: type, said: str) -> None:
    with pytest.raises(error, match=said):
        model.predict(given)


def test_grey_runs_take_coloured_images(train: Any, image: np.ndarray) -> None:
    model = vitlab.load(train("data.channels=1", "trainer.max_epochs=1"))
    seen: list[Tensor] = []

    def see(net: nn.Module, given: tuple[Tensor, ...]) -> None:
        seen.append(given[0])

    model.net.register_forward_pre_hook(see)
    model.predict([image, Image.fromarray(image).convert("L")])
    assert seen[0].shape == (2, 1, 16, 16)
    assert torch.equal(seen[0][0], seen[0][1])
