"""A local page on which a trained network can be tried."""

import os
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vitlab.core import hardware
from vitlab.core.console import printable, say
from vitlab.core.errors import UserError
from vitlab.core.signals import on_signal
from vitlab.data import datasets
from vitlab.data.decode import Images
from vitlab.inference.attribution import METHODS
from vitlab.inference.explain import find_problems
from vitlab.inference.explain_figures import blend
from vitlab.inference.inputs import read_both
from vitlab.inference.load import Classifier, load
from vitlab.models.attention_weights import eager_copy

HOST = "127.0.0.1"
LARGEST_FILE = 50 * 2**20  # bytes of an upload
SHOWN = 320  # pixels of the longer side of a small image, which is shown enlarged, with pixels to be seen
# What the page shows of an image: a sentence, the image, probabilities by class, and where the network looks.
Answer = tuple[str, np.ndarray | None, dict[str, float] | None, np.ndarray | None]


class Demo:
    """What the page asks for.

    Attributes:
        classifier: of the checkpoint.
        method: that says where the network looks; None for none, and then why_no_method has a sentence.
        images: test images; None where they are not here, and then why_no_images has a sentence.
    """

    def __init__(self, checkpoint: Path) -> None:
        self.device = hardware.resolve_device_type("auto")
        self.classifier: Classifier = load(checkpoint).to(self.device)
        self.net = eager_copy(self.classifier.net)
        problems = find_problems(self.net)
        self.method = next((name for name in ("rollout", "gradcam") if name not in problems), None)
        self.why_no_method = "" if self.method else problems["gradcam"]
        self.images, self.why_no_images = None, ""
        try:
            self.images, self.labels = find_test_images(
                self.classifier.config["data"], self.classifier.classes
            )
        except UserError as error:
            self.why_no_images = f"There are no test images here: {str(error).splitlines()[0]}"

    def answer_file(self, name: str | None) -> Answer:
        """Answer an upload; None: it was taken away."""
        if name is None:
            return "", None, None, None
        try:
            pixels, shown = read_both(Path(name), self.classifier.stored_size, self.classifier.channels)
            return self.answer(pixels, shown, "")
        except UserError as error:
            return printable(str(error).replace(name, Path(name).name)), None, None, None

    def answer_test_image(self) -> Answer:
        """Answer a test image drawn by lot."""
        assert self.images is not None
        row = np.random.default_rng().integers(len(self.labels), size=1)
        try:
            pixels = self.images[row][0]
        except UserError as error:  # of a file that is broken, or has gone since
            return printable(str(error)), None, None, None
        shown = np.broadcast_to(pixels.transpose(1, 2, 0), (*pixels.shape[1:], 3))
        label = self.classifier.classes[self.labels[row[0]]]
        return self.answer(pixels, shown, f"Test image {row[0]}, whose class is {label}. ")

    def answer(self, pixels: np.ndarray, shown: np.ndarray, begin: str) -> Answer:
        """Answer an image, ``(C, H, W)`` as the data are stored and ``(H, W, 3)`` as a person sees it."""
        found = self.classifier.predict(torch.tensor(pixels))
        factor = max(SHOWN // max(shown.shape[:2]), 1)
        shown = shown.repeat(factor, 0).repeat(factor, 1)
        where = None
        if self.method:
            images = self.classifier.preprocess(torch.tensor(pixels)[None].to(self.device))
            best = torch.tensor([self.classifier.classes.index(found.class_name)], device=self.device)
            where = blend(shown, METHODS[self.method](self.net, images, best)[0].cpu().numpy())
        said = f"{begin}The network says {found.class_name}, with a probability of {found.probability:.0%}."
        return said, shown, found.probabilities, where


def find_test_images(options: dict[str, Any], classes: list[str]) -> tuple[Images, np.ndarray]:
    """Return images and labels of a run's data, without downloading anything or decoding all of it.

    Raises:
        UserError: they are not here, or have other classes than the network.
    """
    # Under data.on_error=skip the cache knows which files are broken.
    left = ("url",) if options.get("on_error") == "skip" else ("url", "cache")
    dataset = datasets.build(options | {key: None for key in left if key in options})
    if list(dataset.classes) != classes:
        raise UserError(f"the classes of {dataset.name} are no longer those that the network learned.")
    return dataset.load("test")


def make_page(demo: Demo) -> Any:
    """Return the page, as gradio's Blocks."""
    import gradio as gr

    height, width = demo.classifier.preprocess.size
    with gr.Blocks(title="vitlab", analytics_enabled=False) as page:
        gr.Markdown(
            f"# Which class is it?\nA {type(demo.net).__name__} that was trained on "
            f"{len(demo.classifier.classes)} classes. It sees every image at {width} × {height} pixels, as "
            "in training."
        )
        with gr.Row():
            with gr.Column():
                upload = gr.File(label="An image file", height=140)
                draw = gr.Button("Draw a test image", interactive=demo.images is not None)
                gr.Markdown(demo.why_no_images, visible=demo.images is None)
                said = gr.Textbox(label="Answer", interactive=False, lines=2)
            with gr.Column():
                label = gr.Label(label="Probabilities", num_top_classes=5, show_heading=False)
        picture: dict[str, Any] = {"show_label": False, "interactive": False, "buttons": [], "height": 340}
        looks = f"Where the network looks: the brighter, the more ({demo.method})"
        with gr.Row():
            with gr.Column():
                gr.Markdown("The image")
                image = gr.Image(alt_text="The image", **picture)
            with gr.Column():
                gr.Markdown(looks if demo.method else demo.why_no_method)
                where = gr.Image(alt_text="Where the network looks", visible=bool(demo.method), **picture)
        answers = [said, image, label, where]
        # One at a time: to record attention, torch's own function is replaced meanwhile.
        options: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "net"}
        upload.change(demo.answer_file, upload, answers, **options)
        draw.click(demo.answer_test_image, None, answers, **options)
    return page


def serve(checkpoint: Path, port: int | None) -> None:
    """Serve the page until Ctrl-C or SIGTERM.

    Args:
        port: None for the first free one from 7860.

    Raises:
        UserError: the port is taken, or there is no network that could be tried.
    """
    demo = Demo(checkpoint)
    stop = threading.Event()
    with tempfile.TemporaryDirectory() as uploads, on_signal(lambda signum: stop.set()):
        # Read while gradio is imported.
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": uploads}
        page = make_page(demo)
        # What would reach others, or starts servers of its own; the environment can turn some of it on.
        off = dict.fromkeys(("share", "run_history", "enable_monitoring", "ssr_mode", "mcp_server"), False)
        try:
            _, address, _ = page.launch(
                server_name=HOST,
                server_port=port,
                quiet=True,
                prevent_thread_lock=True,
                max_file_size=LARGEST_FILE,
                footer_links=[],
                **off,
            )
        except OSError as error:
            name = "the ports from 7860 on are" if port is None else f"--port {port}: the port is"
            raise UserError(f"{name} taken, or not for users: choose another one with --port.") from error
        say(f"{address} (Ctrl-C ends it)")
        stop.wait()
        page.close(verbose=False)
