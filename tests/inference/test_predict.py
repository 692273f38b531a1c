"""predict.py as a user runs it: every format, every kind of image, and what is broken or mistaken."""

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import predict as verb
import vitlab
from tests.conftest import ROOT, TINY, Train, answer_without_torch
from tests.inference.test_load import ODD, train_on_photographs
from vitlab.core.cli import finish
from vitlab.core.errors import UserError
from vitlab.core.run_folder import RunFolder
from vitlab.inference import predict as module
from vitlab.inference.inputs import find_weights


@pytest.fixture
def predict(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Any:
    """Call the verb in this process, and return its exit code and what it wrote to both streams."""

    def call(*arguments: object, stdin: bytes = b"") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["predict.py", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        monkeypatch.setattr(sys, "stdout", open(os.dup(1), "w"))  # noqa: SIM115
        capfd.readouterr()
        code = finish(verb.main)
        sys.stdout.close()
        return code, *capfd.readouterr()

    return call


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one picture, saved in every way that the world saves them."""
    folder = tmp_path_factory.mktemp("images")
    noise = np.random.default_rng(1).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    picture = Image.fromarray(noise).resize((70, 50))
    turned = Image.Exif()
    turned[0x112] = 3
    picture.rotate(180).save(folder / "turned.png", exif=turned)
    picture.save(folder / "plain.png")
    picture.save(folder / "first.gif", save_all=True, append_images=[Image.new("RGB", (70, 50))])
    picture.convert("CMYK").save(folder / "cmyk.jpg", quality=95)
    picture.convert("RGBA").save(folder / "rgba.png")
    picture.quantize(256).save(folder / "palette.png")
    wide = np.asarray(picture.convert("L")).astype(np.uint16) * 257
    Image.fromarray(wide).save(folder / "wide.png")
    picture.convert("L").save(folder / "grey.png")
    (folder / "deep").mkdir()
    picture.save(folder / "deep" / "plain.png")
    return folder


@pytest.fixture(scope="module")
def broken(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with files that are no images, and one that is."""
    folder = tmp_path_factory.mktemp("broken")
    (folder / "empty.jpg").touch()
    (folder / "text.jpg").write_text("no image")
    whole = (images / "plain.png").read_bytes()
    (folder / "truncated.png").write_bytes(whole[: len(whole) // 2])
    Image.fromarray(np.zeros((4, 4), np.float32)).save(folder / "float.tiff")
    Image.new("1", (20_000, 20_000)).save(folder / "bomb.png")
    (folder / "folder.jpg").mkdir()
    (folder / "gone.jpg").symlink_to("nowhere")
    shutil.copy(images / "plain.png", folder / "whole.png")
    return folder


def read_jsonl(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_every_kind_of_image_is_predicted_as_the_picture_that_it_shows(
    finished: Path, images: Path, predict: Any
) -> None:
    code, out, err = predict(finished, images, "--format", "jsonl")
    assert (code, err) == (0, "")
    found = {Path(row["path"]).name: row for row in read_jsonl(out)}
    assert len(found) == 8
    assert len(read_jsonl(out)) == 9, "one more in a folder below"
    model = vitlab.load(finished)
    expected = model.predict(images / "plain.png")
    assert [*found["plain.png"]] == ["path", "class", "probability", "top"]
    assert [(one["class"], one["probability"]) for one in found["plain.png"]["top"]] == expected.top(5)
    close = {name: abs(row["probability"] - expected.probability) < 0.02 for name, row in found.items()}
    same = {name: row["class"] == expected.class_name for name, row in found.items()}
    for name in ("turned.png", "first.gif", "rgba.png", "cmyk.jpg", "palette.png"):
        assert close[name], name
        assert same[name], name
    assert found["wide.png"]["probability"] == pytest.approx(found["grey.png"]["probability"], rel=1e-5)


def test_the_formats_say_the_same_and_names_with_odd_characters_are_right(
    tmp_path: Path, predict: Any
) -> None:
    run = train_on_photographs(tmp_path)
    image = shutil.copy(tmp_path / "photos/test" / ODD[0] / "0.jpg", tmp_path / 'ä, "b" [red].jpg')
    (row,) = read_jsonl(predict(run, image, "--format", "jsonl", "--top", 99)[1])
    assert row["path"] == str(image)
    assert {one["class"] for one in row["top"]} == {*ODD}
    assert sum(one["probability"] for one in row["top"]) == pytest.approx(1)
    (record,) = csv.DictReader(io.StringIO(predict(run, image, "--format", "csv")[1]))
    assert [*record] == ["path", "class", "probability", "class_2", "probability_2"]
    assert [record["path"], record["class"], record["class_2"]] == [
        row["path"],
        *(one["class"] for one in row["top"]),
    ]
    assert float(record["probability"]) == row["probability"]
    heading, line = predict(run, image)[1].splitlines()
    assert heading.split() == ["image", "class", "probability", "then"]
    assert '"b" [red].jpg' in line
    assert f"{row['class']} " in line
    assert f"{row['probability']:.1%}" in line
    assert row["top"][1]["class"] in line
    assert row["top"][1]["class"] not in predict(run, image, "--top", 1)[1]


def test_broken_images_are_reported_and_the_rest_goes_on(
    finished: Path, broken: Path, images: Path, predict: Any
) -> None:
    code, out, err = predict(finished, broken, images / "plain.png", "--format", "jsonl")
    assert code == 1
    assert [Path(row["path"]).name for row in read_jsonl(out)] == ["whole.png", "plain.png"]
    said = err.splitlines()
    names = ["bomb.png", "empty.jpg", "float.tiff", "gone.jpg", "text.jpg", "truncated.png"]
    assert len(said) == len(names) + 1
    for name, line in zip(names, said, strict=False):
        assert line.startswith(f"cannot be read: {broken / name}: ")
    assert said[-1] == "error: 6 of 8 images cannot be read, see above."
    assert predict(finished, broken / "text.jpg")[:2] == (1, "")


def test_paths_on_standard_input_are_read_one_a_line(finished: Path, images: Path, predict: Any) -> None:
    odd = os.fsencode(images) + b"/\xff.png"
    shutil.copy(images / "plain.png", odd)
    names = b"\n".join([odd, b"", b"no/such.jpg", os.fsencode(images / "grey.png")])
    code, out, err = predict(finished, "-", "--format", "jsonl", stdin=names)
    os.unlink(odd)
    assert code == 1
    assert [os.fsencode(row["path"]) for row in read_jsonl(out)] == [odd, os.fsencode(images / "grey.png")]
    assert "cannot be read: no/such.jpg: [Errno 2] No such file" in err
    assert "no paths on standard input" in predict(finished, "-")[2]


def test_results_come_batch_by_batch_with_one_heading(
    finished: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Spy(io.StringIO):
        flushed: list[str]

        def flush(self) -> None:
            self.flushed.append(self.getvalue())

    monkeypatch.setattr("vitlab.data.decode.CHUNK", 4)
    paths = [images / name for name in ("plain.png", "grey.png", "rgba.png") * 3]
    for form, heading in (("table", 1), ("csv", 1), ("jsonl", 0)):
        out = Spy()
        out.flushed = []
        checkpoint = find_weights(str(finished))[0]
        module.predict(module.Request(checkpoint, False, paths, form, 2, [], True, Path()), out)
        lines = {text.count("\n") for text in out.flushed} - {0}
        assert lines == {4 + heading, 8 + heading, 9 + heading}


def test_a_reader_that_has_seen_enough_ends_it_quietly(finished: Path, images: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, str(ROOT / "predict.py"), str(finished), str(images), "--format", "csv"]
    ended = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (1, "")


def test_raw_takes_the_weights_without_their_average(train: Train, images: Path, predict: Any) -> None:
    run = train("callbacks.ema.decay=0.8", "optimizer.lr=0.05")
    for raw in (False, True):
        (row,) = read_jsonl(predict(run, images / "plain.png", "--format", "jsonl", *["--raw"] * raw)[1])
        expected = vitlab.load(run, raw=raw).predict(images / "plain.png")
        assert (row["class"], row["probability"]) == (expected.class_name, expected.probability)


def test_raw_of_a_run_without_an_average_is_noted(finished: Path, images: Path, predict: Any) -> None:
    assert "note: --raw changes nothing" in predict(finished, images / "plain.png", "--raw")[2]


def test_explain_writes_an_overlay_an_image(copied: Path, images: Path, tmp_path: Path, predict: Any) -> None:
    pair = images / "plain.png", images / "deep" / "plain.png"
    code, out, err = predict(copied, *pair, images / "grey.png", "--explain", "rollout,gradcam")
    assert code == 0
    names = ["000_plain.png", "001_plain.png", "002_grey.png"]
    assert sorted(file.name for file in (copied / "predict").iterdir()) == names
    assert "3 overlays" in err
    assert "overlays" not in out
    moved = shutil.copy(copied / "checkpoints" / "best.ckpt", tmp_path / "mine.ckpt")
    assert predict(moved, pair[0], "--explain", "rollout")[1] == predict(copied, pair[0])[1]
    one, three = (Image.open(place / "predict" / names[0]) for place in (tmp_path, copied))
    assert one.width < three.width, "a panel a method"


def test_a_network_without_attention_says_which_methods_work(
    train: Train, images: Path, tmp_path: Path, predict: Any
) -> None:
    base = [override for override in TINY if not override.startswith("model")]
    run = train("model=resnet18", "model.width=4", "trainer.max_epochs=1", base=base)
    code, out, err = predict(run, images / "plain.png", "--explain", "rollout", "--out", tmp_path / "out")
    assert (code, out) == (1, "")
    assert err.startswith("error: ResNet has no attention of all tokens to all")
    code, out, err = predict(run, images / "plain.png", "--explain", "all", "--out", tmp_path / "out")
    assert code == 0
    assert err.startswith("note: ResNet has no attention")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{tmp}/nothing", "{image}"], "does not exist"),
        (["{run}", "{tmp}/no.jpg"], "no.jpg: there is no image"),
        (["{run}", "{image}", "{tmp}"], "there is no image: expected a file, a folder with images"),
        (["{run}"], "the following arguments are required: IMAGE"),
        (["{run}", "{image}", "--top", "0"], "--top 0: expected 1 or more"),
        (["{run}", "{image}", "--format", "json"], "invalid choice: 'json'"),
        (["{run}", "{image}", "--explain", "rolout"], r"--explain rolout: .* \(did you mean 'rollout'\?\)"),
        (["{run}", "{image}", "--fromat=csv"], r"--fromat=csv \(did you mean '--format'\?\)"),
        (["{run}", "{image}", "--out", "{tmp}"], "--out is the folder for overlays"),
        (["{run}", "{image}", "--explain", "rollout", "--out", "{image}/x"], "nothing can be written to"),
        (["{image}", "{image}"], "cannot be read as a checkpoint"),
    ],
)
def test_a_mistake_gets_one_sentence(
    arguments: list[str], said: str, finished: Path, images: Path, tmp_path: Path, predict: Any
) -> None:
    names = {"run": finished, "image": images / "plain.png", "tmp": tmp_path}
    code, out, err = predict(*(argument.format(**names) for argument in arguments))
    assert (code, out) == (1, "")
    (line,) = err.splitlines()
    assert re.search(f"^error: .*{said}", line), line


def test_a_run_that_is_still_training_is_refused(copied: Path, images: Path) -> None:
    folder = RunFolder(copied)
    record = json.loads(folder.summary.read_text())
    folder.summary.write_text(json.dumps(record | {"status": "running"}))
    with folder.lock(), pytest.raises(UserError, match="is still training"):
        find_weights(str(copied))


def test_a_mistake_is_answered_without_torch(finished: Path) -> None:
    ended = answer_without_torch("predict.py", str(finished), "no.jpg")
    assert ended.returncode == 1
    assert "no.jpg: there is no image" in ended.stderr
