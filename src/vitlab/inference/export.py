"""Export a trained network: one folder that says everything needed to use it without vitlab."""

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from safetensors.torch import save_file
from torch import Tensor, nn

from vitlab.core.errors import UserError
from vitlab.core.files import results_folders, write_json
from vitlab.core.provenance import find_commit
from vitlab.core.run_folder import RunFolder
from vitlab.core.untrusted import read_json
from vitlab.data import datasets
from vitlab.data.datamodule import ImageData
from vitlab.data.decode import ImageFiles
from vitlab.data.preprocess import resize_pixels
from vitlab.inference import onnx, snippets
from vitlab.inference.load import Classifier, has_average, load
from vitlab.inference.model_card import AVERAGED, RAW, Facts, model_name, write_card
from vitlab.inference.timm_format import timm_config, timm_logits, to_timm, why_not_timm
from vitlab.models.attention_weights import eager_copy
from vitlab.models.layers import pair
from vitlab.models.pretrained import Weights
from vitlab.models.wrapper import LibraryModel
from vitlab.training.evaluation import restore_data

CHECKED = 256  # images on which an export is compared with the network
CALIBRATED = 512  # training images that the scales of 8 bits come from
BATCH = 64  # images in one pass, but where the batch is the question
LARGEST_DIFFERENCE = 1e-4  # of a probability
LARGEST_LOGIT_DIFFERENCE = 1e-5  # for logits up to 1, and of larger ones in proportion


@dataclass(frozen=True)
class Request:
    """What is to be exported, and how.

    Attributes:
        checkpoint: of the network.
        home: the run folder, or the folder of a checkpoint alone.
        format: ``safetensors``, ``onnx`` or ``timm``.
        out: the folder to write.
        weights: ``ema`` or ``raw``, of a run that has both; None: those that it was tested with.
        raw: leave the preprocessing and the softmax out of an ONNX file.
        int8: write an ONNX file in 8 bits too.
        max_drop: how many points of accuracy that may cost.
        force: write it whatever it costs.
        images: to check the export on; without any, those of the run's hold-out.
    """

    checkpoint: Path
    home: Path
    format: str
    out: Path
    weights: str | None
    raw: bool
    int8: bool
    max_drop: float
    force: bool
    images: Sequence[Path]


@dataclass
class Content:
    """What a format puts into the folder, beside config.json's common part and the card.

    Attributes:
        config: more of config.json.
        note, code: how it is used.
        checks: what was measured, a sentence each.
    """

    config: dict[str, Any] = field(default_factory=dict)
    note: str = ""
    code: str = ""
    checks: list[str] = field(default_factory=list)


def export(request: Request, console: Console) -> None:
    """Write the folder and say what is in it.

    Raises:
        UserError: the folder holds something else, the network cannot be expressed in this format, what was
            written differs from the network, or there are no images to check it on.
    """
    own = find_own(request.out)
    with results_folders([request.out]):
        classifier = load(request.checkpoint, raw=request.weights == "raw")
        if request.weights and not has_average(classifier.config):
            raise UserError(
                f"--weights {request.weights}: this run has one kind of weights alone "
                "(callbacks.ema.decay=null). Leave the option out."
            )
        with tempfile.TemporaryDirectory(dir=request.out, prefix=".export-") as work:
            files = fill(Path(work), request, classifier, console)
            for stale in own:
                (request.out / stale).unlink(missing_ok=True)
            for file in files:
                os.replace(Path(work, file), request.out / file)
    sizes = (f"{file} ({show_size(request.out / file)})" for file in files)
    console.print(f"{request.out}: {', '.join(sizes)}")


def fill(work: Path, request: Request, classifier: Classifier, console: Console) -> list[str]:
    """Write all files of an export into a folder, say what was found on the way, and return their names.

    Raises:
        UserError: see `export`.
    """
    content = FORMATS[request.format](request, classifier, work)
    for check in content.checks:
        console.print(check)
    facts = Facts(
        format=request.format,
        net=classifier.net,
        meta=classifier.meta,
        checkpoint=request.checkpoint,
        weights=(RAW if request.weights == "raw" else AVERAGED) if has_average(classifier.config) else "",
        summary={} if request.home == request.checkpoint.parent else RunFolder(request.home).read_summary(),
        note=content.note,
        code=content.code,
        checks=content.checks,
    )
    (work / "README.md").write_text(write_card(facts), encoding="utf-8")
    files = sorted({*(path.name for path in work.iterdir()), "config.json"})
    mark = {"vitlab": {"format": request.format, "files": files, "commit": find_commit()}}
    write_json(work / "config.json", content.config | mark)
    return files


def find_own(out: Path) -> list[str]:
    """Return the files of an earlier export in a folder, which a new one replaces.

    Raises:
        UserError: there is something else in it.
    """
    if not out.is_dir() or not any(out.iterdir()):
        return []
    try:
        record = read_json(out / "config.json")
        return [Path(name).name for name in record["vitlab"]["files"]]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"{out} holds something else than an export of vitlab's, and the two would be mixed: choose "
            "another folder by --out."
        ) from None


def describe(classifier: Classifier) -> dict[str, Any]:
    """Return what config.json says of a network, whatever the format."""
    meta = classifier.meta
    return {
        "architecture": model_name(meta["config"]),
        "classes": meta["classes"],
        "image_size": meta["input_size"],
        "channels": len(meta["mean"]),
        "mean": meta["mean"],
        "std": meta["std"],
    }


def write_safetensors(request: Request, classifier: Classifier, work: Path) -> Content:
    """Write the weights, under the names of the library that the network is of."""
    net, model = classifier.net, classifier.config["model"]
    inner = net.net if isinstance(net, LibraryModel) else net
    assert isinstance(inner, nn.Module)
    save_weights(inner.state_dict(), work / "model.safetensors")
    note, code = snippets.safetensors(net, classifier.meta)
    config = describe(classifier) | {"model": model, "library": snippets.library_call(net, classifier.meta)}
    return Content(config=config, note=note, code=code)


def write_timm(request: Request, classifier: Classifier, work: Path) -> Content:
    """Write the network in timm's terms, and hold what timm makes of it against the network itself."""
    if reason := why_not_timm(classifier.net):
        raise UserError(f"--format timm: {reason}. Choose --format onnx, which takes every network.")
    meta = classifier.meta
    form = to_timm(classifier.net, meta["config"]["model"], len(meta["classes"]))
    config = timm_config(form, meta["classes"], meta["mean"], meta["std"], meta["input_size"])
    save_weights(form.weights, work / "model.safetensors")
    write_json(work / "config.json", config)
    images, whose = Images(request, classifier).or_noise()
    pixels = classifier.preprocess(images)
    expected = predict(eager_copy(classifier.net), pixels)
    difference = float((timm_logits(work, pixels) - expected).abs().max())
    if difference > LARGEST_LOGIT_DIFFERENCE * max(1.0, float(expected.abs().max())):
        raise UserError(
            f"timm's logits differ by up to {difference:.1e} from the network's on {whose}, so nothing was "
            "exported; please report this network."
        )
    check = f"timm's logits differ from PyTorch's by at most {difference:.1e}, on {whose}"
    note, code = snippets.timm(classifier.meta)
    return Content(config=config, note=note, code=code, checks=[check])


def write_onnx(request: Request, classifier: Classifier, work: Path) -> Content:
    """Write the ONNX file, another in 8 bits where that is asked for, and hold both against the network."""
    onnx.need_onnx("export.py --format onnx")
    meta = classifier.meta
    source = Images(request, classifier)
    images, whose = source.real()
    path = work / "model.onnx"
    size = (len(meta["mean"]), meta["input_size"][0], meta["input_size"][1])
    metadata = describe(classifier)
    net = classifier.net if request.raw else classifier
    onnx.export_onnx(net, path, size, raw=request.raw, metadata=metadata)
    given = classifier.preprocess(images) if request.raw else images
    expected = predict(eager_copy(net), given).softmax(-1)
    run, checks = onnx.open_onnx(path), []
    for batch in sorted({1, len(images)}):
        found = torch.cat([run(own) for own in given.split(batch)])
        difference = float(((found.softmax(-1) if request.raw else found) - expected).abs().max())
        if not difference <= LARGEST_DIFFERENCE:
            raise UserError(
                f"the ONNX file's probabilities differ by up to {difference:.1e} from PyTorch's on {whose}, "
                f"in batches of {batch}. More than {LARGEST_DIFFERENCE:.0e} is refused, so nothing was "
                "exported; please report this network."
            )
        checks.append(
            f"ONNX Runtime's probabilities differ from PyTorch's by at most {difference:.1e}, on {whose}, in "
            f"batches of {batch}"
        )
    if request.int8:
        checks += write_int8(request, source, path)
    note, code = snippets.onnx(classifier.meta, raw=request.raw, int8=request.int8)
    return Content(config=metadata, note=note, code=code, checks=checks)


def write_int8(request: Request, source: "Images", path: Path) -> list[str]:
    """Write ``model_int8.onnx`` beside an ONNX file, and say what it costs on the hold-out."""
    data = source.data
    if not data.num_val:
        raise UserError(
            "--int8: what 8 bits cost is measured on the hold-out, and this run had none (data.val_size=0). "
            "The test split is not for choosing; leave the option out."
        )
    target = path.with_name("model_int8.onnx")
    calibration = source.fit(data.train_images(CALIBRATED)[0])
    onnx.quantize(path, target, calibration)
    right = []
    for file in (path, target):
        run = onnx.open_onnx(file)
        parts = [data.read("val", rows) for rows in torch.arange(data.num_val).split(BATCH)]
        right.append(
            torch.cat([run(source.fit(images)).argmax(1) == labels.cpu() for images, labels in parts])
        )
    before, after = right
    lost, gained = int((before & ~after).sum()), int((after & ~before).sum())
    drop = 100 * (lost - gained) / data.num_val
    said = (
        f"accuracy on the {data.num_val:,} images of the hold-out: {share(before)} in float32, "
        f"{share(after)} in 8 bits ({lost} right in float32 alone, {gained} in 8 bits alone); ranges of "
        f"{len(calibration)} training images"
    )
    if drop > request.max_drop and not request.force:
        raise UserError(
            f"--int8: {said}. That is {drop:.2f} points less, and --max-drop allows {request.max_drop:g}, so "
            "nothing was exported; --force exports it all the same."
        )
    return [said]


class Images:
    """The images that an export is checked on: those given, or else some of the run's own."""

    def __init__(self, request: Request, classifier: Classifier) -> None:
        self.files = request.images
        self.meta = classifier.meta
        self._data: ImageData | None = None

    @property
    def data(self) -> ImageData:
        """The run's data.

        Raises:
            UserError: they are not there.
        """
        if self._data is None:
            self._data = restore_data(self.meta, datasets.build(self.meta["config"]["data"]))
        return self._data

    def real(self) -> tuple[Tensor, str]:
        """Return images uint8 (n, C, H, W) of the network's size, and whose they are.

        Raises:
            UserError: there are none.
        """
        options = self.meta["config"]["data"]
        if self.files:
            shape = pair("data.image_size", options["image_size"])
            files = self.files[:CHECKED]
            pixels = ImageFiles(files, shape, options["channels"], num_workers=0)[np.arange(len(files))]
            return self.fit(torch.from_numpy(pixels)), f"{len(files)} of the images given"
        try:
            data = self.data
        except UserError as error:
            raise UserError(f"{error} An export is checked on real images: give some by --images.") from error
        part, total = ("val", data.num_val) if data.num_val else ("test", data.num_test)
        rows = torch.linspace(0, total - 1, min(CHECKED, total)).long()
        name = {"val": "the hold-out", "test": "the test split"}[part]
        return self.fit(data.read(part, rows)[0]), f"{len(rows)} images of {name}"

    def fit(self, images: Tensor) -> Tensor:
        """Return images uint8 (n, C, H, W) of the data at the network's size, on the CPU."""
        return resize_pixels(images.cpu(), self.meta["input_size"])

    def or_noise(self) -> tuple[Tensor, str]:
        """Return real images, or noise where there are none."""
        try:
            return self.real()
        except UserError:
            if self.files:
                raise
        shape = (len(self.meta["mean"]), *self.meta["input_size"])
        noise = torch.randint(256, (CHECKED, *shape), generator=torch.Generator().manual_seed(0))
        return noise.to(torch.uint8), f"{CHECKED} images of noise, as the run's data are not there"


@torch.no_grad()
def predict(net: nn.Module, images: Tensor) -> Tensor:
    """Return logits (N, K) of images (N, C, H, W)."""
    return torch.cat([net(own) for own in images.split(BATCH)])


def save_weights(weights: Weights, path: Path) -> None:
    """Write tensors by name, each with a memory of its own and in the usual order."""
    save_file({name: value.detach().clone().contiguous() for name, value in weights.items()}, path)


def share(right: Tensor) -> str:
    """Return how many of the images (N,) are right, as ``"80.68 %"``."""
    return f"{100 * right.double().mean():.2f} %"


def show_size(path: Path) -> str:
    """Return ``"3.41 MB"`` or ``"2.8 kB"``."""
    size = path.stat().st_size
    return f"{size / 1e6:.2f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"


FORMATS: dict[str, Callable[[Request, Classifier, Path], Content]] = {
    "safetensors": write_safetensors,
    "onnx": write_onnx,
    "timm": write_timm,
}
