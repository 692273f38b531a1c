"""demo.py: what it answers, and its page in a real browser, by the keyboard alone."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import demo as verb
import vitlab
from tests.browser import CHROMIUM, Page, opened
from tests.conftest import ROOT, TINY, Train
from tests.data.helpers import config
from tests.inference.test_load import train_on_photographs
from vitlab.core.errors import UserError
from vitlab.inference.demo import Demo, find_test_images, serve


def best(run: Path) -> Path:
    return run / "checkpoints" / "best.ckpt"


@pytest.fixture(scope="module")
def demo(finished: Path) -> Demo:
    return Demo(best(finished))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an image and a text that is called one."""
    folder = tmp_path_factory.mktemp("files")
    noise = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "wide.png")
    (folder / "text.jpg").write_text("no image")
    return folder


def test_an_upload_is_answered_with_classes_and_where_the_network_looks(
    demo: Demo, finished: Path, files: Path
) -> None:
    said, image, probabilities, where = demo.answer_file(str(files / "wide.png"))
    found = vitlab.load(finished).predict(files / "wide.png")
    assert said.startswith(f"The network says {found.class_name}, with a probability of")
    assert probabilities == pytest.approx(found.probabilities)
    assert image is not None
    assert where is not None
    assert image.shape == where.shape == (200, 300, 3), "enlarged by a whole number"
    assert (image[::10, ::10] == np.asarray(Image.open(files / "wide.png"))).all()
    assert np.ptp(where.astype(int).max(-1)) > 10, "some places are brighter"


def test_a_test_image_is_drawn_with_its_class(demo: Demo) -> None:
    said, image, *_ = demo.answer_test_image()
    classes = "|".join(demo.classifier.classes)
    assert re.match(rf"Test image \d+, whose class is ({classes})\. The network says", said)
    assert image is not None
    assert len({demo.answer_test_image()[0] for _ in range(12)}) > 3


def test_a_file_that_is_no_image_is_answered_with_a_sentence(demo: Demo, files: Path) -> None:
    said, *rest = demo.answer_file(str(files / "text.jpg"))
    assert said.startswith("text.jpg cannot be read as an image")
    assert str(files) not in said
    assert rest == [None, None, None]
    assert demo.answer_file(None) == ("", None, None, None)


def test_nothing_is_downloaded(tmp_path: Path) -> None:
    options = config("cifar10", root=str(tmp_path), url="https://localhost:9/data.tar.gz")
    with pytest.raises(UserError, match="CIFAR-10 is not in"):
        find_test_images(options, [])
    assert not [*tmp_path.iterdir()]


def test_without_the_data_or_attention_the_page_says_why(tmp_path: Path, train: Train, files: Path) -> None:
    run = train_on_photographs(tmp_path)
    there = Demo(best(run))
    assert there.images is not None
    for file in (tmp_path / "photos").rglob("*.*"):
        file.write_text("no image")
    assert "cannot be read" in there.answer_test_image()[0]
    for part in ("train", "test"):
        folder = min((tmp_path / "photos" / part).iterdir())
        folder.rename(folder.with_name("zebra"))
    assert "no longer those that the network learned" in Demo(best(run)).why_no_images
    shutil.rmtree(tmp_path / "photos")
    gone = Demo(best(run))
    assert gone.images is None
    assert "photos" in gone.why_no_images
    base = [override for override in TINY if not override.startswith("model")]
    resnet = Demo(best(train("model=resnet18", "model.width=4", "trainer.max_epochs=1", base=base, name="r")))
    assert resnet.method == "gradcam"
    assert resnet.answer_file(str(files / "wide.png"))[3] is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torchcam", None)
        without = Demo(best(tmp_path / "r"))
    assert without.method is None
    assert "needs torchcam" in without.why_no_method
    assert without.answer_file(str(files / "wide.png"))[3] is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{run}", "--port", "0"], "--port 0: expected 1 to 65535"),
        (["{run}", "--port", "some"], "invalid int value"),
        (["{run}x"], "does not exist"),
        ([], "the following arguments are required: RUN"),
    ],
)
def test_a_mistake_gets_one_sentence(
    arguments: list[str], said: str, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["demo.py", *(text.format(run=finished) for text in arguments)])
    with pytest.raises(UserError, match=said):
        verb.main()


def test_without_gradio_the_extra_is_named(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["demo.py", str(finished)])
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UserError, match=r"demo.py needs gradio, .* -e '\.\[demo\]'"):
        verb.main()


@pytest.mark.slow
def test_a_port_that_is_taken_is_refused(finished: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match="the port is taken"):
            serve(best(finished), taken.getsockname()[1])


@contextlib.contextmanager
def served(run: Path, folder: Path) -> Iterator[str]:
    """Run demo.py as a user does, and end it as one does; give the address that it prints."""
    environment = os.environ | {"TMPDIR": str(folder), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, str(ROOT / "demo.py"), str(run)]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout
            yield process.stdout.readline().split()[0]
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0
    assert said == ""
    assert not list(folder.iterdir()), "uploads are deleted"


def upload(page: Page, file: Path) -> None:
    """Choose a file by the keyboard."""
    page.call("Page.setInterceptFileChooserDialog", enabled=True)
    page.tab_to("document.activeElement.innerText.includes('Upload')")
    page.press("Enter")
    for _ in range(100):
        page.evaluate("new Promise(done => setTimeout(done, 100))")  # events come with an answer
        if page.events["Page.fileChooserOpened"]:
            break
    node = page.events["Page.fileChooserOpened"].pop()["backendNodeId"]
    page.call("DOM.setFileInputFiles", files=[str(file)], backendNodeId=node)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")
def test_the_page_works_by_keyboard_and_asks_nobody_else(finished: Path, files: Path, tmp_path: Path) -> None:
    (tmp_path / "uploads").mkdir()
    answer = "document.querySelector('textarea').value"
    ready = "[...document.querySelectorAll('button')].some(b => b.innerText === 'Draw a test image')"
    loaded = "[...document.images].filter(image => image.naturalWidth > 100).length === 2"
    with served(finished, tmp_path / "uploads") as address, opened(tmp_path / "profile") as page:
        assert address.startswith("http://127.0.0.1:")
        page.call("Network.enable")
        page.call("Page.enable")
        page.open(address)
        assert page.wait(ready, 60)
        page.tab_to("document.activeElement.innerText === 'Draw a test image'")
        page.press("Enter")
        assert "whose class is" in page.wait(answer, 60)
        assert page.wait(loaded, 60)
        for name, said in (("text.jpg", "text.jpg cannot be read"), ("wide.png", "The network says")):
            page.open(address)
            assert page.wait(ready, 60)
            upload(page, files / name)
            assert page.wait(answer, 60).startswith(said)
        assert page.wait(loaded, 60)
        asked = [event["request"]["url"] for event in page.events["Network.requestWillBeSent"]]
    outside = [url for url in asked if not url.startswith((address, "data:", "blob:", "about:"))]
    assert len(asked) > 20
    assert not outside
