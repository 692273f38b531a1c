"""The picture of the augmentations that every run starts with, and the notes about them."""

import numpy as np
import pytest

from tests.conftest import TINY
from vitlab.config import preflight, to_plain
from vitlab.core.plotting import rasterize
from vitlab.core.run_folder import RunFolder
from vitlab.training import figures
from vitlab.training.build import build


def job(*overrides):
    (cfg,) = preflight([*TINY, *overrides])
    return build(to_plain(cfg) | {"choices": {"augment": "some"}})


@pytest.fixture
def drawn(monkeypatch):
    """Record what is handed to the figure, which takes a second to draw and to write, and touch its file."""
    calls = []

    def save(figure, folder, name, trackers=()):
        folder.figures.mkdir(exist_ok=True)
        (folder.figures / f"{name}.png").touch()

    monkeypatch.setattr(
        figures, "plot_augmentations", lambda rows, classes, title: calls.append((rows, title))
    )
    monkeypatch.setattr(figures, "_save", save)
    return calls


def test_no_picture_is_drawn_a_second_time(drawn, tmp_path):
    folder, small = RunFolder(tmp_path), job()
    figures.draw_augmentations(folder, small, None)
    figures.draw_augmentations(folder, small, None)
    assert len(drawn) == 1


def test_the_rows_are_what_training_draws(drawn, tmp_path):
    small = job("augment=mixup_cutmix", "seed=5")
    figures.draw_augmentations(RunFolder(tmp_path), small, None)
    ((rows, title),) = drawn
    (originals, targets), *draws = rows
    assert originals.dtype == np.uint8
    assert originals.shape == (8, 3, 16, 16)
    assert len({int(t.argmax()) for t in targets}) == 8, "as many classes as there are"
    assert np.array_equal(targets.sum(1), np.ones(8))
    assert len(draws) == 6
    assert len({images.tobytes() for images, _ in draws}) == 6
    for _, soft in draws:
        np.testing.assert_allclose(soft.sum(1), 1, rtol=1e-5)
    assert any(((soft > 0.05) & (soft < 0.95)).any() for _, soft in draws)
    for word in ("crop → flip → mix", "shapes", "seed 5", "smoothing"):
        assert word in title
    other, same = job("augment=mixup_cutmix", "seed=6"), job("augment=mixup_cutmix", "seed=5")
    for name, another in (("other", other), ("same", same)):
        (tmp_path / name).mkdir()
        figures.draw_augmentations(RunFolder(tmp_path / name), another, None)
    assert np.array_equal(drawn[2][0][3][0], draws[2][0])
    assert not np.array_equal(drawn[1][0][3][0], draws[2][0])


def test_gray_data_without_augmentation_has_its_picture(drawn, tmp_path):
    figures.draw_augmentations(RunFolder(tmp_path), job("data.channels=1", "augment=none"), None)
    ((rows, title),) = drawn
    assert all(np.array_equal(images, rows[0][0]) for images, _ in rows)
    assert "images as they are" in title
    assert (tmp_path / "figures" / "augmentations.png").exists()


@pytest.mark.parametrize("channels", [1, 3])
def test_a_sheet_shows_pixels_and_targets(channels):
    images = np.zeros((2, channels, 8, 12), np.uint8)
    images[1, :, 2, 3] = 200
    soft = np.array([[0.63, 0.37, 0.0], [0.002, 0.0, 0.998]])
    rows = [(images, np.eye(3)[[0, 2]]), (images / np.float32(255), soft)]
    figure = figures.plot_augmentations(rows, ["cat", "dog", "x" * 40], "what it is")
    (axes,) = figure.axes
    sheet = np.asarray(axes.images[0].get_array())
    assert sheet.dtype == np.uint8
    places = [tuple(place) for place in np.argwhere((sheet == 200).all(-1))]
    assert len(places) == 2, "once a row, the float one as well"
    assert places[0][1] == places[1][1]
    texts = [text.get_text() for text in axes.texts]
    assert "cat" in texts
    assert "cat 63%\ndog 37%" in texts
    assert sum(text.startswith("xxx") and len(text) < 20 for text in texts) == 2, "a trace is not shown"
    assert {"original", "draw 1"} <= set(texts)
    assert rasterize(figure).shape[2] == 3


def test_names_with_dollars_and_tall_images_are_drawn():
    rows = [(np.zeros((2, 3, 128, 4), np.uint8), np.eye(2))] * 3
    figure = figures.plot_augmentations(rows, ["$a_{$", "$$$"], "of $b_{$")
    _, height = figure.get_size_inches()
    assert height < 8
    pixels = rasterize(figure)
    assert pixels.shape[2] >= 3
