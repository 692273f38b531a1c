"""Any image that PIL reads becomes one size and one kind; what cannot be read is named."""

import numpy as np
import pytest
from PIL import Image

from tests.data.helpers import save
from vitlab.core.errors import UserError
from vitlab.data import decode as module
from vitlab.data.decode import ImageFiles, read_image, resize_images


def pixel(path, channels=3):
    return read_image(path, (4, 4), channels)[:, 1, 1].tolist()


@pytest.mark.parametrize(
    ("name", "mode", "colour", "rgb", "gray"),
    [
        ("rgb.png", "RGB", (200, 100, 50), [200, 100, 50], [124]),
        ("gray.png", "L", 77, [77, 77, 77], [77]),
        ("bits.png", "1", 1, [255, 255, 255], [255]),
        ("wide.png", "I;16", 256 * 77 + 10, [77, 77, 77], [77]),
        ("wide.tif", "I;16", 65535, [255, 255, 255], [255]),
        ("clear.png", "RGBA", (200, 100, 50, 0), [255, 255, 255], [255]),
        ("half.png", "RGBA", (0, 0, 0, 128), [127, 127, 127], [127]),
        ("graya.png", "LA", (0, 0), [255, 255, 255], [255]),
        ("cmyk.tif", "CMYK", (0, 255, 255, 0), [255, 0, 0], [76]),
        ("rgb.bmp", "RGB", (200, 100, 50), [200, 100, 50], [124]),
        ("rgb.gif", "RGB", (0, 255, 0), [0, 255, 0], [150]),
        ("rgb.webp", "RGB", (255, 255, 255), [255, 255, 255], [255]),
    ],
)
def test_kinds_of_images(tmp_path, name, mode, colour, rgb, gray):
    path = save(tmp_path / name, colour, (4, 4), mode)
    assert pixel(path) == rgb
    assert pixel(path, channels=1) == gray


def test_a_palette_and_its_transparent_colour(tmp_path):
    image = Image.new("P", (4, 4), 1)
    image.putpalette([9, 9, 9, 0, 0, 255])
    image.save(tmp_path / "plain.png")
    image.save(tmp_path / "clear.png", transparency=1)
    assert pixel(tmp_path / "plain.png") == [0, 0, 255]
    assert pixel(tmp_path / "clear.png") == [255, 255, 255]


def test_the_orientation_in_the_file_is_applied(tmp_path):
    image = Image.new("RGB", (6, 3), "black")
    image.paste("white", (0, 0, 3, 3))  # the left half
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise: left becomes top
    image.save(tmp_path / "turned.png", exif=exif)
    out = read_image(tmp_path / "turned.png", (6, 3), 3)
    assert out.shape == (3, 6, 3)
    assert (out[:, :3] == 255).all()
    assert (out[:, 3:] == 0).all()


def test_resizing_is_antialiased_and_takes_any_aspect(tmp_path):
    fine = np.zeros((64, 64), dtype=np.uint8)
    fine[:, ::2] = 255
    Image.fromarray(fine).save(tmp_path / "fine.png")
    out = read_image(tmp_path / "fine.png", (8, 12), 1)
    assert out.shape == (1, 8, 12)
    assert np.abs(out[:, :, 1:-1].astype(int) - 127).max() < 40


def test_broken_files_are_all_named_at_once(tmp_path):
    paths = [save(tmp_path / f"{i}.png") for i in range(9)]
    for path in paths[1:8]:
        path.write_bytes(b"not an image")
    whole = save(tmp_path / "photo.jpg", size=(64, 64))
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(whole.read_bytes()[:-200])
    with pytest.raises(UserError) as error:
        ImageFiles([*paths, cut], (8, 8), 3, 2).decode_all()
    message = str(error.value)
    assert "8 files" in message
    assert str(paths[1]) in message
    assert "and 3 more" in message
    assert str(paths[0]) not in message
    with pytest.raises(UserError, match="1 file cannot be read"):
        ImageFiles([whole, cut], (8, 8), 3, None).decode_all()


def test_floating_point_images_are_refused(tmp_path):
    path = save(tmp_path / "depth.tif", 0.5, mode="F")
    with pytest.raises(UserError, match="range is unknown"):
        ImageFiles([path], (8, 8), 3, 1).decode_all()


@pytest.mark.parametrize("workers", [0, 2, None])
def test_the_order_is_that_of_the_paths(tmp_path, workers):
    paths = [save(tmp_path / f"{i}.png", (i, 0, 0)) for i in range(150)]
    out = ImageFiles(paths, (8, 8), 3, workers).decode_all()
    assert out[:, 0, 0, 0].tolist() == list(range(150))


def test_broken_files_are_named_by_processes_too(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 4)
    paths = [save(tmp_path / f"{i}.png", (i, 0, 0)) for i in range(30)]
    paths[17].write_bytes(b"not an image")
    with pytest.raises(UserError, match=r"1 file cannot be read.*\n.*17\.png"):
        ImageFiles(paths, (8, 8), 3, 2).decode_all()


def test_arrays_are_resized_as_files_are(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32), dtype=np.uint8)
    Image.fromarray(pixels[1].transpose(1, 2, 0)).save(tmp_path / "one.png")
    for channels in (1, 3):
        out = resize_images(pixels, (20, 24), channels)
        assert np.array_equal(out[1], read_image(tmp_path / "one.png", (20, 24), channels))
    assert resize_images(pixels, (32, 32), 3) is pixels


def test_memory_is_looked_at_before_resizing(monkeypatch):
    pixels = np.zeros((1, 3, 8, 8), dtype=np.uint8)
    monkeypatch.setattr("vitlab.data.memory.available_memory", lambda: 1000)
    with pytest.raises(UserError, match=r"Set a smaller data\.image_size"):
        resize_images(pixels, (32, 32), 3)
    monkeypatch.setattr("vitlab.data.memory.available_memory", lambda: None)
    assert resize_images(pixels, (32, 32), 3).shape == (1, 3, 32, 32)
